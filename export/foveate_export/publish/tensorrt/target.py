"""What engines are built by and for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foveate_export.errors import EngineError, UsageError
from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.tensorrt import cuda
from foveate_runtime.backends.tensorrt.flavour import (
    FLAVOURS,
    TENSORRT_RTX,
    Flavour,
    Library,
    load_library,
)
from foveate_runtime.backends.tensorrt.sidecar import Range

BATCH = Range(minimum=1, optimum=8, maximum=64)
"""The optimum is the server's largest batch by default."""
CLASSES = Range(minimum=1, optimum=5, maximum=20)
"""The maximum is above what the server admits by default."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What engines are built by and for.

    Attributes:
        library: TensorRT or TensorRT-RTX.
        capabilities: the compute capabilities of the GPUs that an engine is for.
        batch: how many pictures an engine takes at once.
        classes: how many classes it explains at once.
        timing_cache: the file that keeps what the builder measured; None for none.
    """

    library: Library
    capabilities: tuple[str, ...]
    batch: Range = BATCH
    classes: Range = CLASSES
    timing_cache: Path | None = None


def choose_target(
    flavour: str | None = None,
    capabilities: Sequence[str] = (),
    *,
    batch: Range = BATCH,
    classes: Range = CLASSES,
    timing_cache: Path | None = None,
) -> Target:
    """Find the library and check that it builds for the GPUs that are named.

    Args:
        flavour: `tensorrt` or `tensorrt_rtx`; None for the first that is installed.
        capabilities: such as 8.9; none for that of the GPU at hand.
        batch: how many pictures an engine takes at once.
        classes: how many classes it explains at once.
        timing_cache: see `Target`.

    Raises:
        UsageError: a compute capability that the library does not build for, or
            a timing cache for one that measures nothing.
        EngineError: there is no GPU, and the library needs one.
        foveate_runtime.backends.base.BackendError: the library is not installed.
    """
    library = load_library(_flavour(flavour))
    title = library.flavour.title
    if library.flavour.portable:
        chosen = _portable(library, capabilities)
        if timing_cache is not None:
            raise UsageError(
                f"--timing-cache: {title} has none; it chooses its kernels when an engine runs"
            )
    else:
        chosen = (_own_capability(title),)
        if tuple(capabilities) not in ((), chosen):
            raise UsageError(
                f"--compute-capability {','.join(capabilities)}: {title} builds for "
                f"the GPU at hand, which has {chosen[0]}"
            )
    return Target(
        library=library,
        capabilities=chosen,
        batch=batch,
        classes=classes,
        timing_cache=timing_cache,
    )


def portable_capabilities(library: Library) -> dict[str, Any]:
    """Return the compute capabilities that a portable library builds for, and its names of them."""
    members = library.module.ComputeCapability.__members__
    return {
        f"{match[1]}.{match[2]}": member
        for name, member in members.items()
        if (match := re.fullmatch(r"SM([0-9]+)([0-9])", name))
    }


def _flavour(name: str | None) -> Flavour:
    if name is not None:
        return FLAVOURS[name]
    for flavour in FLAVOURS.values():
        if find_spec(flavour.name) is not None:
            return flavour
    # The one that builds anywhere; loading it says how it is installed.
    return TENSORRT_RTX


def _portable(library: Library, capabilities: Sequence[str]) -> tuple[str, ...]:
    known = portable_capabilities(library)
    title, listing = library.flavour.title, ", ".join(known)
    if not capabilities:
        try:
            capabilities = (cuda.capability(cuda.find_gpu("cuda")),)
        except BackendError as error:
            raise UsageError(
                f"--compute-capability must name the GPUs to build for, as there is none here; "
                f"{title} {library.version} builds for {listing}"
            ) from error
    unknown = [capability for capability in capabilities if capability not in known]
    if unknown:
        raise UsageError(
            f"compute capability {', '.join(unknown)}: "
            f"{title} {library.version} builds for {listing}"
        )
    # In one order, so that the same engine has the same name.
    return tuple(capability for capability in known if capability in capabilities)


def _own_capability(title: str) -> str:
    try:
        return cuda.capability(cuda.find_gpu("cuda"))
    except BackendError as error:
        raise EngineError(
            f"{title} builds on the GPU that an engine is for: {error} "
            f"({TENSORRT_RTX.title} builds without one)"
        ) from error
