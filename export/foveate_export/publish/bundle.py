"""What a bundle may be called, how large it may be, and what an export returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from foveate_export.anatomy.layer import Layer
from foveate_export.errors import ExportError, UsageError
from foveate_runtime.bundle.manifest import FeatureOutput, Manifest, Name

LARGEST = 1536 * 2**20
"""Bytes of weights: protobuf ends at 2 GiB, which holds the rest of the graph as well."""

NO_CAMS = "no class activation maps: the model was exported with --no-cams"
"""What a bundle says of maps that were not asked for."""


@dataclass(frozen=True)
class Exported:
    """A published bundle: its folder, its manifest, and what is to be said about it."""

    path: Path
    manifest: Manifest
    note: str | None

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def check_name(name: str) -> None:
    """Raise UsageError unless `name` can be a model's name and a folder's."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise UsageError(
            f"name {name!r}: letters, digits, '.', '_' and '-', at most 128, "
            "beginning with a letter or a digit"
        ) from error


def check_size(size: int, what: str) -> None:
    """Raise ExportError where `size` bytes are more than a graph of a bundle holds."""
    if size > LARGEST:
        raise ExportError(
            f"{what}: {size / 1e9:.1f} GB of weights; a bundle holds up to {LARGEST / 1e9:.1f} GB"
        )


def write_labels(labels: Sequence[str], path: Path) -> None:
    """Write one label a line.

    Raises:
        ExportError: a label holds a line break.
    """
    for label in labels:
        if "\n" in label:
            raise ExportError(f"label {label!r} holds a line break")
    path.write_text("\n".join(labels) + "\n", encoding="utf-8", newline="\n")


def feature_outputs(layers: Sequence[Layer]) -> tuple[FeatureOutput, ...]:
    """Return the manifest's entries of the layers whose feature maps the graph returns."""
    return tuple(
        FeatureOutput(
            layer=layer.path,
            channels=layer.channels,
            height=layer.height,
            width=layer.width,
            layout=str(layer.layout),
        )
        for layer in layers
    )
