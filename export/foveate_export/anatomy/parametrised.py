"""Layers whose weight is computed of others: weight norm, spectral norm and the like.

In evaluation mode such a weight is constant. A network gets it as a plain parameter,
so that its graph holds one weight and its head is known by its name.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def with_plain_weights(module: nn.Module) -> nn.Module:
    """Return the network with plain weights; the other layers are shared with `module`.

    The same network where it has nothing else.
    """
    weights = _computed(module)
    children = {name: with_plain_weights(child) for name, child in module.named_children()}
    changed = any(children[name] is not child for name, child in module.named_children())
    if not weights and not changed:
        return module
    kind = parametrize.type_before_parametrizations(module)
    plain: Any = object.__new__(kind)
    # Not copy.copy: a parametrised layer refuses it, and its class is one of its own.
    vars(plain).update(vars(module))
    plain._modules = {**module._modules, **children}  # noqa: SLF001 - as nn.Module keeps them
    plain._modules.pop("parametrizations", None)  # noqa: SLF001
    plain._parameters = dict(module._parameters)  # noqa: SLF001
    plain._forward_pre_hooks = type(module._forward_pre_hooks)(  # noqa: SLF001
        (key, hook)
        for key, hook in module._forward_pre_hooks.items()  # noqa: SLF001
        if not isinstance(hook, WeightNorm | SpectralNorm)
    )
    for name, weight in weights.items():
        vars(plain).pop(name, None)
        plain.register_parameter(name, nn.Parameter(weight.detach().clone(), requires_grad=False))
    result: nn.Module = plain
    return result


def _names(parametrizations: Any) -> list[str]:
    return list(parametrizations)


def _computed(module: nn.Module) -> dict[str, Tensor]:
    """Return the values of the weights that a layer computes, by their names."""
    hooks: list[Any] = list(module._forward_pre_hooks.values())  # noqa: SLF001
    found = {
        hook.name: hook.compute_weight(module) for hook in hooks if isinstance(hook, WeightNorm)
    } | {
        hook.name: hook.compute_weight(module, do_power_iteration=False)
        for hook in hooks
        if isinstance(hook, SpectralNorm)
    }
    if parametrize.is_parametrized(module):
        found |= {name: getattr(module, name) for name in _names(module.parametrizations)}
    return found
