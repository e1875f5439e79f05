"""A forward pass and the maps in it, each in a layout that was proved."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate_export.anatomy.calls import Call, Pass, run
from foveate_export.anatomy.layout import Layout, candidates
from foveate_export.anatomy.location import NOT_LOCATED, locate, painted
from foveate_export.anatomy.taps import Tap

WITHIN_ATTENTION = "part of attention, as queries and keys are"
REPEATED = "run several times in a pass"


@dataclass(frozen=True)
class Map:
    """An activation with rows and columns.

    Attributes:
        tap: where it is read, and in which layout.
        module: the module that takes or returns it there.
        tensor: its values as [N, C, h, w]. One tensor of the network is one
            object here, at every tap that reads it.
    """

    tap: Tap
    module: nn.Module
    tensor: Tensor


@dataclass(frozen=True)
class Recording:
    """A forward pass.

    Attributes:
        module: the network.
        image: what it took.
        logits: what it returned.
        calls: every call of a module, in the order of return.
        maps: every map that a call took or returned, in the order in which they were
            seen: what a module takes, before what is computed in it. Of a module that
            runs several times the last call counts, as it does for a tap.
        left_out: the modules that return several axes and are no layers, with the
            reason.
    """

    module: nn.Module
    image: Tensor
    logits: Tensor
    calls: list[Call]
    maps: list[Map]
    left_out: Mapping[str, str]


def record(module: nn.Module, image: Tensor) -> Recording:
    """Run `module` on `image`, float32 [N, C, H, W], and find the maps inside it.

    It runs once more for each corner of the pictures, which
    `foveate_export.anatomy.location` paints over. The tensors are references, as with `Tap`.
    """
    first = run(module, image)
    tensors = _tensors(first)
    layouts = _locate(module, image, first, tensors)
    maps = _maps(first, tensors, layouts)
    return Recording(module, image, first.logits, first.calls, maps, _left_out(first, layouts))


def _tensors(passed: Pass) -> dict[Tap, Tensor]:
    """Return what the last call of every module took and returned, where it has several axes."""
    seen = {
        time: (tap, tensor)
        for call in {call.path: call for call in passed.calls}.values()
        for time, tap, tensor in (
            (call.began, Tap(call.path, "input"), call.input),
            (call.ended, Tap(call.path), call.output),
        )
        if tensor is not None and _has_axes(tensor)
    }
    return dict(seen[time] for time in sorted(seen))


def _has_axes(tensor: Tensor) -> bool:
    """Whether a tensor is more than a vector for each picture."""
    return tensor.is_floating_point() and sum(size > 1 for size in tensor.shape[1:]) > 1


def _locate(
    module: nn.Module, image: Tensor, passed: Pass, tensors: Mapping[Tap, Tensor]
) -> dict[Tap, Layout]:
    """Return the layout of each of `tensors` that is a map."""
    # A tensor leaves a block and enters the next: one tap stands for all that read it.
    first: dict[int, Tap] = {}
    for tap, tensor in tensors.items():
        first.setdefault(id(tensor), tap)
    height, width = image.shape[2:]
    grids = {(t.shape[2], t.shape[3]) for t in tensors.values() if t.ndim == 4}
    choices = {
        tap: candidates(tensors[tap].shape, (height, width), grids)
        for tap in first.values()
        if len(tensors[tap]) == len(image)
    }
    choices = {tap: layouts for tap, layouts in choices.items() if layouts}
    convolved = {tap for tap in choices if id(tensors[tap]) in passed.windowed}
    repeats = (run(module, torch.from_numpy(changed)) for changed in painted(image.numpy()))
    found = locate(
        _arrays(tensors, choices),
        (_arrays(_tensors(repeat), choices) for repeat in repeats),
        choices,
        # Attention takes things elsewhere, and then a convolution says nothing of the picture.
        convolved if not passed.attention else (),
    )
    return {
        tap: found[first[id(tensor)]]
        for tap, tensor in tensors.items()
        if first[id(tensor)] in found
    }


def _arrays(
    tensors: Mapping[Tap, Tensor], taps: Mapping[Tap, object]
) -> dict[Tap, NDArray[np.float32]]:
    return {tap: tensors[tap].detach().float().numpy() for tap in taps if tap in tensors}


def _maps(passed: Pass, tensors: Mapping[Tap, Tensor], layouts: Mapping[Tap, Layout]) -> list[Map]:
    modules = {call.path: call.module for call in passed.calls}
    views: dict[int, Tensor] = {}
    found = []
    for tap, layout in layouts.items():
        if not passed.within_attention(tap.path):
            tensor = tensors[tap]
            view = views.setdefault(id(tensor), layout.to_nchw(tensor))
            found.append(Map(replace(tap, layout=layout), modules[tap.path], view))
    return found


def _left_out(passed: Pass, layouts: Mapping[Tap, Layout]) -> dict[str, str]:
    runs = Counter(call.path for call in passed.calls)
    left_out = {}
    for call in passed.calls:
        if call.output is None or not _has_axes(call.output):
            continue
        if passed.within_attention(call.path):
            left_out[call.path] = WITHIN_ATTENTION
        elif Tap(call.path) not in layouts:
            left_out[call.path] = NOT_LOCATED
        elif runs[call.path] > 1:
            left_out[call.path] = REPEATED
    return left_out
