"""Finds the classifier to export: a checkpoint folder or a name of the registry."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foveate_export.errors import UsageError
from foveate_train import checkpoint, registry
from foveate_train.classifier import Classifier


@dataclass(frozen=True)
class Source:
    """A classifier, and what training noted about it."""

    classifier: Classifier
    metadata: dict[str, str] = field(default_factory=dict)


def load_source(source: str, weights: str | None = None, arguments: Sequence[str] = ()) -> Source:
    """Return the classifier that `source` names.

    Args:
        source: a checkpoint folder, or a name of the registry.
        weights: for a name, what `foveate_train.registry.create` takes.
        arguments: for a name, the network's arguments as `name=value`.

    Raises:
        UsageError: weights or arguments are given beside a checkpoint.
        foveate_train.errors.TrainError: the classifier cannot be had.
    """
    folder = Path(source)
    if not folder.is_dir():
        return Source(
            registry.create(source, weights=weights, **registry.parse_arguments(arguments))
        )
    if weights is not None or arguments:
        raise UsageError(f"{source} is a checkpoint and brings its weights and arguments")
    loaded = checkpoint.load(folder)
    record = loaded.record
    metadata = {f"metrics.{name}": repr(value) for name, value in loaded.metrics.items()}
    metadata |= {"data_digest": record.data_digest, "seed": str(record.seed)}
    return Source(loaded.classifier, metadata)
