"""Warm-up: the runs before the first request, so that no request waits for the engine's set-up."""

import logging
import math
import time
from collections.abc import Sequence

import numpy as np

from foveate_runtime.backends.base import Array, BackendError, Runner
from foveate_runtime.bundle.manifest import CAM_PREFIX, CLASS_IDS_INPUT, IMAGE_INPUT, LOGITS_OUTPUT
from foveate_serve.batching.pacing import Pace
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.heap import trim_heap

logger = logging.getLogger(__name__)

_LIGHT_SECONDS = 1e-3
"""A run shorter than this gains nothing from further threads, which must first be woken."""

_INLINE_SECONDS = _LIGHT_SECONDS
"""The longest run that may block the event loop."""

_SLOW_SECONDS = 2 * _LIGHT_SECONDS
_TRIALS = 5


def warm_up(runner: Runner, sizes: Sequence[int], lanes: int = 1, *, watched: bool = False) -> Pace:
    """Run black pictures in batches of `sizes` for the logits, and one for the first map as well.

    An engine may set itself up again for every size, and for every set of outputs.
    Most requests for maps come alone, and few need other outputs: to warm those up would
    only make the start longer. With several `lanes`, a picture and the map
    also run on a share of the cores.

    Returns how short the runs are. Where runs are `watched` for a timeout and not
    bounded, none may run on the event loop: a run that hangs must not block it.

    Raises:
        BackendError: the engine fails, or the graph breaks its contract, or its logits are not
            finite numbers.
    """
    started = time.monotonic()
    # The largest first: the others fit into the memory that it allocates.
    for size in sorted(sizes, reverse=True):
        logits = runner.run(_black(runner, size), [LOGITS_OUTPUT])[LOGITS_OUTPUT]
        # A maximum is no number where a logit is none; a class may be ruled out by -inf.
        if not np.isfinite(logits.max(axis=1)).all():
            raise BackendError("the logits of a black picture are not finite numbers")
    cam = next((name for name in runner.outputs if name.startswith(CAM_PREFIX)), None)
    explained = {**_black(runner, 1), CLASS_IDS_INPUT: np.full((1, 1), -1, dtype=np.int64)}
    if cam is not None:
        runner.run(explained, [LOGITS_OUTPUT, cam])
    if lanes > 1:
        runner.run(_black(runner, 1), [LOGITS_OUTPUT], share_cores=True)
        if cam is not None:
            runner.run(explained, [LOGITS_OUTPUT, cam], share_cores=True)
    may_hang, pace = watched and not runner.bounded, Pace()
    if runner.device == "cpu" and (lanes > 1 or not may_hang):
        shortest = _shortest_run(runner, share_cores=lanes > 1)
        pace = Pace(
            light=lanes > 1 and shortest < _LIGHT_SECONDS,
            inline_pictures=0 if may_hang else int(_INLINE_SECONDS / shortest),
        )
    runner.trim()
    trim_heap()
    logger.debug(
        "warmed up on %s in batches of %s in %.2f s",
        runner.backend,
        ", ".join(map(str, sorted(sizes))),
        time.monotonic() - started,
    )
    return pace


def _shortest_run(runner: Runner, *, share_cores: bool) -> float:
    """Return the seconds of the shortest of a few runs, of which a slow runner does only one."""
    picture = _black(runner, 1)
    shortest = math.inf
    for _ in range(_TRIALS):
        started = time.perf_counter()
        runner.run(picture, [LOGITS_OUTPUT], share_cores=share_cores)
        shortest = min(shortest, time.perf_counter() - started)
        if shortest > _SLOW_SECONDS:
            break
    return shortest


def _black(runner: Runner, size: int) -> dict[str, Array]:
    return {IMAGE_INPUT: np.zeros((size, *runner.image_shape), dtype=np.uint8)}


def batch_sizes(policy: BatchPolicy, lanes: int = 1) -> tuple[int, ...]:
    """Return the sizes to warm up: the preferred ones, or else powers of two up to the largest.

    One and the largest are always among them. With several `lanes` the largest is a
    lane's share, but at least two pictures where a batch may have several: the
    warm-up must find a graph that takes one picture only.
    """
    share = policy.share(policy.max_batch, idle=1, lanes=lanes)
    most = max(share, min(2, policy.max_batch))
    between = policy.preferred_sizes or [1 << power for power in range((most - 1).bit_length())]
    return tuple(sorted({1, *between, most}))
