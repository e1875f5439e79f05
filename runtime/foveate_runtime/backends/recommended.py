"""Which backend and variant are the fastest here: a file in a repository's folder.

`foveate bench --recommend` writes it, with an entry for each model. An entry counts
only where it was measured: on this machine, with this version of the engine, on
this bundle.
"""

import json
import os
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.registry import engine_version
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import Name, Positive
from foveate_runtime.cores import count_cores
from foveate_runtime.machine import gpu_names, processor_identity

RECOMMENDED_FILE = "recommended.toml"

MOST_BYTES = 1 << 20
"""The largest file that is read."""

_HEAD = """\
# The backend and the variant that were the fastest of each model on one machine.
# Written by `foveate bench --recommend`, read by `foveate serve`.
"""

Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A text that fits into a line of a log."""


class RecommendedError(Exception):
    """A file that cannot be used; the message says what is wrong with it."""


class Recommended(BaseModel):
    """What serves a model best, and where that was measured.

    `digest` is the SHA-256 of the bundle's manifest and `version` its number, `engine` the
    version of the backend's package, `cores` as many as the process could use. `gpus`
    are the names and drivers of the machine's GPUs, none for the device `cpu`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Name
    backend: Text
    device: Text
    version: Positive
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    engine: Text
    processor: Text
    cores: Positive
    gpus: tuple[Text, ...] = ()

    @classmethod
    def here(cls, bundle: Bundle, *, variant: str, backend: str, device: str) -> Self:
        """Return the entry of a measurement that was made in this process's place.

        Raises BackendError where there is no such backend, or its engine is missing.
        """
        return cls(
            variant=variant,
            backend=backend,
            device=device,
            version=bundle.manifest.version,
            digest=bundle.digest,
            engine=engine_version(backend),
            processor=processor_identity(),
            cores=count_cores(),
            gpus=() if device == "cpu" else gpu_names(),
        )

    def mismatch(self, bundle: Bundle, device: str) -> str:
        """Return why the entry does not count for a bundle and a device here, empty if it does."""
        if self.digest != bundle.digest:
            return f"another bundle was measured, version {self.version}"
        if self.device != device:
            return f"the device {self.device} was measured, not {device}"
        try:
            here = self.here(bundle, variant=self.variant, backend=self.backend, device=device)
        except BackendError as error:
            return str(error)
        for name, measured, now in (
            ("processor", self.processor, here.processor),
            ("number of cores", self.cores, here.cores),
            ("list of GPUs", ", ".join(self.gpus), ", ".join(here.gpus)),
            (f"version of {self.backend}", self.engine, here.engine),
        ):
            if measured != now:
                return f"the {name} was {measured} and is {now}"
        return ""


def read_recommended(repository: Path) -> dict[str, Recommended]:
    """Return the entries of a repository by model, none where there is no file.

    Raises RecommendedError where the file cannot be read or is not what
    `foveate bench --recommend` writes.
    """
    path = repository / RECOMMENDED_FILE
    try:
        # To open a pipe would wait for its writer.
        if path.exists() and not path.is_file():
            raise RecommendedError(f"{RECOMMENDED_FILE}: no plain file")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RecommendedError(f"{RECOMMENDED_FILE}: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise RecommendedError(f"{RECOMMENDED_FILE}: larger than the limit of {MOST_BYTES} bytes")
    try:
        return _File.model_validate(tomllib.loads(data.decode("utf-8"))).models
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecommendedError(f"{RECOMMENDED_FILE}: {where!r}: {first['msg']}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecommendedError(f"{RECOMMENDED_FILE}: no TOML ({error})") from error


def write_recommended(
    repository: Path, chosen: Mapping[str, Recommended], measured: Iterable[str]
) -> Path:
    """Put the entries of the models that were `measured` into a repository's file.

    Those of other models stay; a file that cannot be used is replaced. A reader sees the
    file before or after, never a part. Returns its path; raises OSError.
    """
    try:
        entries = read_recommended(repository)
    except RecommendedError:
        entries = {}
    for name in measured:
        entries.pop(name, None)
    path = repository / RECOMMENDED_FILE
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=repository, prefix=f".{RECOMMENDED_FILE}-", delete=False
    ) as part:
        try:
            part.write(_to_toml(dict(sorted({**entries, **chosen}.items()))))
            part.flush()
            # A server may run as another user.
            os.fchmod(part.fileno(), 0o644)
            Path(part.name).replace(path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
    return path


class _File(BaseModel):
    """The file's contents."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[Name, Recommended]


def _to_toml(entries: Mapping[str, Recommended]) -> str:
    lines = [_HEAD, "[models]"]
    for name, entry in entries.items():
        lines += ["", f"[models.{json.dumps(name)}]"]
        # JSON writes such values as TOML does.
        lines += [
            f"{field} = {json.dumps(value, ensure_ascii=False)}"
            for field, value in entry.model_dump(mode="json").items()
        ]
    return "\n".join(lines) + "\n"
