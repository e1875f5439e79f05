"""Finds the picture in the body of a request: the body itself, or a part of a form."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from foveate_serve.errors import InvalidRequestError

IMAGE_FIELD = "image"
MAX_PARTS = 8


def picture_of(content_type: str | None, body: bytes) -> bytes:
    """Return the encoded picture; raises InvalidRequestError."""
    kind, options = parse_options_header(content_type)
    picture = _part(options.get(b"boundary"), body) if kind == b"multipart/form-data" else body
    if not picture:
        raise InvalidRequestError(
            "IMAGE_MISSING", "the request has no picture: send it as the body", field="body"
        )
    return picture


def _part(boundary: bytes | None, body: bytes) -> bytes:
    """Return the part of a form that is the picture, without a file on disk."""
    found: list[bytes] = []
    parts = 0

    def count() -> None:
        nonlocal parts
        parts += 1
        if parts > MAX_PARTS:
            raise _bad_form(f"the form has more than {MAX_PARTS} parts")

    def on_field(field: Field) -> None:
        count()
        if field.field_name == IMAGE_FIELD.encode():
            found.append(field.value or b"")

    def on_file(file: File) -> None:
        count()
        if file.field_name == IMAGE_FIELD.encode():
            file.file_object.seek(0)
            found.append(file.file_object.read())
        file.close()

    # A part is no longer than the body, which is in memory already.
    limits = {"MAX_MEMORY_FILE_SIZE": len(body) + 1, "MAX_FIELD_SIZE": len(body) + 1}
    try:
        parser = FormParser(
            "multipart/form-data", on_field, on_file, boundary=boundary, config=limits
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise _bad_form("the body is not the form that its content type says") from error
    if len(found) != 1:
        raise _bad_form(f"the form has {len(found)} parts {IMAGE_FIELD!r}; it must have one")
    return found[0]


def _bad_form(message: str) -> InvalidRequestError:
    return InvalidRequestError("FORM_INVALID", message, field=IMAGE_FIELD)
