"""What is known of an engine without opening it, and which engines may be opened.

An engine is machine code: to deserialise it is to trust it. So beside each
engine of a bundle, `engines/NAME.engine`, lies `engines/NAME.json`, which says
what the engine was built from, by what and for what. An engine is opened only
where all of that holds here, and where its bytes have the digest noted.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from foveate_runtime.backends.base import BackendError
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import Name, Positive, first_fault

ENGINES_FOLDER = "engines"
ENGINE_SUFFIX = ".engine"
SIDECAR_SUFFIX = ".json"
MAX_SIDECAR_BYTES = 64 << 10
"""A sidecar above this size is refused unread."""

Capability = Annotated[str, Field(pattern=r"^[1-9][0-9]?\.[0-9]$")]
"""A GPU's compute capability, such as 8.9."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Model):
    """The sizes that a free dimension may take, and the one that the engine is tuned for."""

    minimum: Positive
    optimum: Positive
    maximum: Positive

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.minimum <= self.optimum <= self.maximum:
            raise ValueError(f"{self} does not rise")
        return self

    def __contains__(self, size: int) -> bool:
        return self.minimum <= size <= self.maximum

    def __str__(self) -> str:
        return f"{self.minimum}, {self.optimum}, {self.maximum}"


class Sidecar(_Model):
    """What an engine was built from, by what and for what.

    Attributes:
        flavour: the module that built it.
        version: that module's version.
        compute_capabilities: the GPUs that it is for.
        variant: the precision.
        onnx_sha256: the digest of the variant's ONNX file.
        kind: `classify` returns logits alone, `explain` every output.
        outputs: the outputs, in their order.
        batch: how many pictures it takes at once.
        classes: how many classes it explains at once; None where the graph has no maps.
        engine_sha256: the digest of the engine.
        engine_size: its bytes.
        build_seconds: what building it took; None where that was not noted.
    """

    format: Literal["foveate.engine/1"] = "foveate.engine/1"
    flavour: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    compute_capabilities: Annotated[tuple[Capability, ...], Field(min_length=1)]
    variant: Name
    onnx_sha256: Digest
    kind: Literal["classify", "explain"]
    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    batch: Range
    classes: Range | None
    engine_sha256: Digest
    engine_size: Positive
    build_seconds: Annotated[float, Field(ge=0)] | None = None

    @property
    def stem(self) -> str:
        """The name of its two files, less their suffixes."""
        targets = "-".join(f"sm{c.replace('.', '')}" for c in self.compute_capabilities)
        return f"{self.variant}.{self.kind}.{self.flavour}.{targets}"


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """An engine of a bundle that fits this machine; its bytes are still unread."""

    bundle: Bundle
    path: str
    sidecar: Sidecar

    def read(self) -> bytes:
        """Return the engine; raises BackendError where it is not the one that the sidecar is of."""
        file = self.bundle.path / self.path
        try:
            # The digest is taken of the very bytes that are going to be opened.
            data = file.read_bytes()
        except OSError as error:
            raise BackendError(f"{self.path}: cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != self.sidecar.engine_sha256:
            raise BackendError(f"{self.path}: its SHA-256 is not the sidecar's; it is not opened")
        return data


def find_engines(
    bundle: Bundle, *, variant: str, flavour: str, version: str, capability: str
) -> list[EngineFile]:
    """Return the engines of a variant that may be opened here, those with fewer outputs first.

    `version` is that of the flavour's module, `capability` the compute
    capability of the GPU. Raises BackendError where no engine fits, saying why
    for each that there is, or where a sidecar is no sidecar.
    """
    found, unfit = [], []
    for path in sorted(bundle.manifest.files):
        if not re.fullmatch(rf"{ENGINES_FOLDER}/[^/]+{re.escape(SIDECAR_SUFFIX)}", path):
            continue
        sidecar = _read(bundle, path)
        if (sidecar.flavour, sidecar.variant) != (flavour, variant):
            continue
        engine = str(PurePosixPath(path).with_suffix(ENGINE_SUFFIX))
        reason = _misfit(bundle, engine, sidecar, version, capability)
        if reason is None:
            found.append(EngineFile(bundle=bundle, path=engine, sidecar=sidecar))
        else:
            unfit.append(f"{engine} {reason}")
    if not found:
        reasons = "; ".join(unfit) or "the bundle has none"
        raise BackendError(
            f"no engine of the variant {variant!r} for {flavour} {version} "
            f"and compute capability {capability}: {reasons} (`foveate engines` builds them)"
        )
    return sorted(found, key=lambda engine: len(engine.sidecar.outputs))


def _read(bundle: Bundle, path: str) -> Sidecar:
    if bundle.manifest.files[path].size > MAX_SIDECAR_BYTES:
        raise BackendError(f"{path}: larger than the limit of {MAX_SIDECAR_BYTES} bytes")
    try:
        return Sidecar.model_validate_json((bundle.path / path).read_bytes())
    except OSError as error:
        raise BackendError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise BackendError(f"{path}: {first_fault(error)}") from error


def _misfit(
    bundle: Bundle, engine: str, sidecar: Sidecar, version: str, capability: str
) -> str | None:
    """Return why an engine must not be opened here; None where it may."""
    files = bundle.manifest.files
    if engine not in files:
        return "is not listed in the manifest"
    if (files[engine].sha256, files[engine].size) != (sidecar.engine_sha256, sidecar.engine_size):
        return "is not the engine that its sidecar describes"
    if sidecar.onnx_sha256 != files[bundle.manifest.variant(sidecar.variant).file].sha256:
        return "was built from another graph than the bundle's"
    if sidecar.version != version:
        return f"was built by version {sidecar.version}"
    if capability not in sidecar.compute_capabilities:
        return f"is for compute capability {', '.join(sidecar.compute_capabilities)}"
    return None
