"""Makes a network of the user's own one that can be examined: alone, on the CPU, in float32."""

from dataclasses import replace
from itertools import chain

import torch
from torch import nn

from foveate_export.errors import ExportError
from foveate_train.classifier import Classifier
from foveate_train.errors import WeightsError
from foveate_train.weights import check_finite

_PARALLEL = (
    nn.DataParallel,
    nn.parallel.DistributedDataParallel,
    torch.optim.swa_utils.AveragedModel,
)


def as_plain(classifier: Classifier) -> Classifier:
    """Return a classifier whose network is in evaluation mode, on the CPU and in float32.

    What wraps the network to compile it, to spread it or to average it is taken off.

    Raises:
        ExportError: some of its tensors have no values, or values that are not finite.
    """
    module, wrappers = _unwrapped(classifier.module)
    if any(isinstance(child, torch.jit.ScriptModule) for child in module.modules()):
        raise ExportError(
            f"{classifier.name} is TorchScript, within which no layers can be found; return the "
            "nn.Module that it was made of, with its weights"
        )
    tensors = dict(chain(module.named_parameters(), module.named_buffers()))
    lazy = [name for name, tensor in tensors.items() if nn.parameter.is_lazy(tensor)]
    if lazy:
        raise ExportError(
            f"{classifier.name}: {lazy[0]} has no values before the network has run once; run it "
            "on a picture, and load its weights then"
        )
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise ExportError(
            f"{classifier.name}: {empty[0]} is on the device meta and has no values; load its "
            "weights with load_state_dict(..., assign=True) first"
        )
    changes = [f"{name} taken off" for name in wrappers]
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if any(tensor.device.type != "cpu" for tensor in tensors.values()):
        changes.append("moved to the CPU")
    others = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
    if others:
        changes.append(f"its {' and '.join(others)} values taken as float32")
    try:
        check_finite(tensors)
    except WeightsError as error:
        raise ExportError(f"{classifier.name}: {error}") from error
    module = module.to("cpu").float().eval()
    said = {"network": ", ".join(changes)} if changes else {}
    return replace(classifier, module=module, assumptions={**classifier.assumptions, **said})


def _unwrapped(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return the network within torch's wrappers, and what they are called."""
    wrappers: list[str] = []
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, _PARALLEL):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module, wrappers
        wrappers.append(type(module).__name__)
        module = inner
