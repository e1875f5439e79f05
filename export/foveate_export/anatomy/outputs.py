"""Finds the logits in what a network returns: a tensor, or something that holds tensors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace

from torch import Tensor, nn

from foveate_export.errors import ExportError, UsageError
from foveate_train.classifier import Classifier

_USUAL = "logits"


@dataclass(frozen=True)
class _Choose:
    """A hook that returns one of the tensors that a network returns."""

    name: str

    def __call__(self, _: nn.Module, __: object, output: object) -> Tensor:
        return dict(_tensors(output))[self.name]


def with_logits(
    classifier: Classifier, module: nn.Module, output: object, pictures: int, wanted: str | None
) -> Classifier:
    """Return a classifier that returns one tensor.

    Args:
        classifier: returns anything that holds tensors.
        module: its network, or a copy of it that hooks can be added to.
        output: what it returned.
        pictures: for how many pictures.
        wanted: the name of the tensor; None for `logits`, or the only one that
            has a number for each label.

    Raises:
        UsageError: there is no tensor of that name.
        ExportError: none or several fit; lists them.
    """
    if isinstance(output, Tensor) and wanted is None:
        return classifier
    found = dict(_tensors(output))
    listed = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in found.items()) or "none"
    if wanted is not None and wanted not in found:
        raise UsageError(f"{classifier.name} returns no {wanted!r}; its tensors are {listed}")
    rows = [name for name, each in found.items() if each.ndim > 1 and len(each) == pictures]
    fitting = [name for name in rows if found[name].shape[1] == len(classifier.labels)] or rows
    name = wanted or (_USUAL if _USUAL in fitting else None)
    if name is None:
        if len(fitting) != 1:
            raise ExportError(
                f"{classifier.name} returns {type(output).__name__} with the tensors {listed} for "
                f"{pictures} pictures; --logits NAME chooses the one with {len(classifier.labels)} "
                "classes"
            )
        (name,) = fitting
    module.register_forward_hook(_Choose(name))
    said = f"{name!r}, of the outputs {', '.join(found)}"
    return replace(
        classifier, module=module, assumptions={**classifier.assumptions, "logits": said}
    )


def _tensors(output: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors within what a network returns, called by keys, fields and places."""
    if isinstance(output, Tensor):
        yield name or "output", output
        return
    prefix = f"{name}." if name else ""
    for key, value in _parts(output):
        yield from _tensors(value, f"{prefix}{key}")


def _parts(output: object) -> Iterator[tuple[str, object]]:
    if isinstance(output, Mapping):
        yield from ((str(key), value) for key, value in output.items())
    elif isinstance(output, Sequence) and not isinstance(output, str | bytes):
        # A named tuple names its places.
        names = getattr(output, "_fields", range(len(output)))
        yield from zip(map(str, names), output, strict=True)
    elif is_dataclass(output) and not isinstance(output, type):
        yield from ((each.name, getattr(output, each.name)) for each in fields(output))
    elif hasattr(output, "__dict__"):
        yield from vars(output).items()
