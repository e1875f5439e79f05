"""Maps of attention in torch, by the words of their papers, as matrices and with autograd.

Nothing of the exported graph is used here: softmax and fused attention are caught while
the network runs as it is.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate_export.errors import UnseenAttentionError
from foveate_export.graph.heads.base import TokenAttention


def maps_of_attention(
    module: nn.Module, pixels: Tensor, classes: Tensor, attention: TokenAttention
) -> dict[str, Tensor]:
    """Return the maps of `classes`, int64 [N, K], by method: float [N, K, h, w].

    Raises:
        UnseenAttentionError: the network does not compute as many matrices of attention
            as it has blocks by functions of torch that can be caught.
    """
    layout = attention.layout
    count = layout.prefix + layout.grid[0] * layout.grid[1]
    tokens: list[Tensor] = []
    with _caught(count) as weights, _returned(module, attention.blocks, tokens):
        logits = module(pixels)
    if len(weights) != len(attention.blocks):
        raise UnseenAttentionError(
            f"torch computes {len(weights)} matrices of {count} x {count} tokens in a softmax, "
            f"for {len(attention.blocks)} blocks"
        )
    found: dict[str, list[Tensor]] = {method: [] for method in attention.methods}
    read = [logits]
    if "legrad" in found and len(weights) > 1:
        read = _read(module, pixels, attention, tokens)
    for column in classes.T:
        if "rollout" in found:
            found["rollout"].append(_rollout(weights, attention.rows))
        if "relevance" in found:
            score = _score(logits, column)
            gradients = torch.autograd.grad(score, weights, retain_graph=True)
            found["relevance"].append(_relevance(weights, gradients, attention.rows))
        if "legrad" in found:
            total = torch.zeros_like(weights[0][:, 0, 0])
            for scores, matrix in zip(read, weights, strict=True):
                (gradient,) = torch.autograd.grad(_score(scores, column), matrix, retain_graph=True)
                total = total + gradient.relu().mean((1, 2))
            found["legrad"].append(total)
    return {
        method: torch.stack(rows, 1)[..., layout.prefix :].reshape(*classes.shape, *layout.grid)
        for method, rows in found.items()
    }


def _score(logits: Tensor, column: Tensor) -> Tensor:
    # Pictures do not touch each other, so one sum gives each its own gradient.
    return logits.gather(1, column[:, None]).sum()


def _rollout(weights: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    result = torch.eye(weights[0].shape[-1], dtype=weights[0].dtype)
    for matrix in weights:
        mixed = matrix.mean(1) + torch.eye(matrix.shape[-1], dtype=matrix.dtype)
        result = mixed / mixed.sum(-1, keepdim=True) @ result
    return result[:, list(rows)].mean(1)


def _relevance(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], rows: Sequence[int]
) -> Tensor:
    # Without the identity that it starts with, which would leave few digits to the rest.
    result = torch.zeros_like(weights[0][:, 0])
    for matrix, gradient in zip(weights, gradients, strict=True):
        flow = (gradient * matrix).relu().mean(1)
        result = result + flow + flow @ result
    return result[:, list(rows)].mean(1)


def _read(
    module: nn.Module, pixels: Tensor, attention: TokenAttention, tokens: Sequence[Tensor]
) -> list[Tensor]:
    """Return the logits that the head makes of the tokens of each block."""
    if not all(isinstance(each, Tensor) for each in tokens):
        raise UnseenAttentionError("a block returns more than its tokens")
    last = module.get_submodule(attention.blocks[-1])
    # The head takes the tokens of all blocks as those of so many pictures.
    handle = last.register_forward_hook(lambda *_: torch.cat(list(tokens)))
    try:
        logits: Tensor = module(pixels)
    finally:
        handle.remove()
    return list(logits.reshape(len(tokens), len(pixels), -1))


@contextmanager
def _returned(module: nn.Module, paths: Sequence[str], tokens: list[Tensor]) -> Iterator[None]:
    """Append to `tokens` what the modules at `paths` return."""
    with ExitStack() as hooks:
        for path in filter(None, paths):
            handle = module.get_submodule(path).register_forward_hook(
                lambda *call: tokens.append(call[2])
            )
            hooks.callback(handle.remove)
        yield


@contextmanager
def _caught(count: int) -> Iterator[list[Tensor]]:
    """Fill a list with the results of softmax of [N, heads, count, count]; fused attention too."""
    found: list[Tensor] = []

    def catching(function: Any) -> Any:
        def softmax(*args: Any, **kwargs: Any) -> Tensor:
            result: Tensor = function(*args, **kwargs)
            if result.ndim == 4 and tuple(result.shape[2:]) == (count, count):
                found.append(result)
            return result

        return softmax

    with ExitStack() as undo:
        for place in (torch, Tensor):
            undo.enter_context(_replaced(place, "softmax", catching(place.softmax)))
        undo.enter_context(_replaced(functional, "scaled_dot_product_attention", _in_parts))
        yield found


@contextmanager
def _replaced(place: Any, name: str, function: Any) -> Iterator[None]:
    inherited, before = name not in vars(place), getattr(place, name)
    setattr(place, name, function)
    try:
        yield
    finally:
        if inherited:
            delattr(place, name)
        else:
            setattr(place, name, before)


def _in_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *more: Any,
    scale: float | None = None,
    **options: Any,
) -> Tensor:
    """Compute what `scaled_dot_product_attention` does in evaluation, by its definition.

    `more` are its dropout, and whether it is causal.
    """
    if options.get("is_causal") or any(more[1:]):
        raise UnseenAttentionError("some attention is causal")
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.transpose(-2, -1) * factor
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1) @ value
