"""The JSON documents that clients send, and how they are read."""

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    JsonValue,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from foveate_serve.errors import InvalidRequestError
from foveate_serve.settings import first_error

MAX_JSON_BYTES = 8 << 20
"""The largest JSON document: it is read on the event loop. Binary data does not count."""

MAX_MEMBERS = 4096
MAX_LISTS = 1 << 17
MAX_ELEMENTS = 1 << 21
"""The most members of objects, lists and elements of a document, counted before it is read.

Each becomes a Python object of fifty bytes or more, and no other request runs meanwhile."""

Parameter = StrictBool | StrictInt | StrictFloat | StrictStr


class FirstFault(FailFast):
    """Ends the reading of a list at its first wrong element, and can be used in a union.

    Otherwise each wrong element would be an error of each form that the list may have.
    """

    def __hash__(self) -> int:
        """Return the same for all."""
        return hash(FirstFault)


Whole: TypeAlias = Annotated[list[StrictInt], FirstFault()]
Whole2: TypeAlias = Annotated[list[Whole], FirstFault()]
Whole3: TypeAlias = Annotated[list[Whole2], FirstFault()]
Whole4: TypeAlias = Annotated[list[Whole3], FirstFault()]
Text: TypeAlias = Annotated[list[StrictStr], FirstFault()]
Texts: TypeAlias = Text | Annotated[list[Text], FirstFault()]
Numbers: TypeAlias = Whole | Whole2 | Whole3 | Whole4

D = TypeVar("D", bound="Document")


class Document(BaseModel):
    """A JSON document; an unknown member is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class InferInput(Document):
    """An input tensor: its elements follow as binary data, or are in `data`, flat or nested."""

    name: str
    shape: Whole
    datatype: str
    parameters: dict[str, Parameter] = {}
    data: Numbers | Texts | None = Field(
        default=None,
        description="whole numbers, or for BYTES the elements in base64; "
        "absent where they follow as binary data",
    )


class InferOutput(Document):
    """An output tensor of a request."""

    name: str
    parameters: dict[str, Parameter] = {}


class InferDocument(Document):
    """An inference request."""

    id: str = ""
    parameters: dict[str, Parameter] = {}
    inputs: Annotated[list[InferInput], FirstFault()]
    outputs: Annotated[list[InferOutput], FirstFault()] = []


class IndexDocument(Document):
    """A request for the versions of the repository; with `ready`, only those that serve."""

    ready: StrictBool = False


class RepositoryDocument(Document):
    """A request to load or unload a model."""

    parameters: dict[str, JsonValue] = {}


def read_document(kind: type[D], body: bytes) -> D:
    """Read a JSON document; an empty body is an empty one. Raises InvalidRequestError."""
    if len(body) > MAX_JSON_BYTES:
        raise InvalidRequestError(
            "BODY_TOO_LARGE",
            f"the JSON has {len(body)} bytes; the limit is {MAX_JSON_BYTES}; "
            "send tensors as binary data",
            field="body",
            metadata={"limit": MAX_JSON_BYTES},
        )
    _require_few(body)
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        name, first = first_error(error)
        if first["type"] == "json_invalid":
            name, message = "body", "the body is not JSON"
        else:
            name, message = _told(first["loc"], first["msg"])
        raise InvalidRequestError("BODY_MALFORMED", message, field=name) from None


def _require_few(body: bytes) -> None:
    """Count what a document may hold at most, by its marks, those within texts among them."""
    for what, count, limit in (
        ("members of objects", body.count(b":"), MAX_MEMBERS),
        ("lists and objects", body.count(b"[") + body.count(b"{"), MAX_LISTS),
        ("elements", body.count(b",") + 1, MAX_ELEMENTS),
    ):
        if count > limit:
            raise InvalidRequestError(
                "BODY_TOO_LARGE",
                f"the JSON has {count} {what}; the limit is {limit}; send tensors as binary data",
                field="body",
                metadata={"limit": limit},
            )


def _told(place: tuple[Any, ...], message: str) -> tuple[str, str]:
    """Return the path of a member that is bad, and a sentence about it."""
    path = ""
    for part in place:
        if path.endswith(".data"):
            # Otherwise there is an error for every form that the elements may have.
            message = (
                "it must hold whole numbers, or texts in base64 for BYTES, in up to 4 dimensions"
            )
            break
        path += f"[{part}]" if isinstance(part, int) else f".{_clean(part)}"
    path = path.lstrip(".") or "body"
    return path, f"{path}: {message}"


def _clean(part: object) -> str:
    # Names of unknown members are the client's own.
    return ascii(str(part))[1:-1][:64]
