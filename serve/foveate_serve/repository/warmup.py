"""The runs before the first request, so that no request meets an engine that is cold."""

import logging
import math
import time
from collections.abc import Sequence

import numpy as np

from foveate_runtime.backends.base import Array, Runner
from foveate_runtime.bundle.manifest import CAM_PREFIX, CLASS_IDS_INPUT, IMAGE_INPUT, LOGITS_OUTPUT
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.heap import trim_heap

logger = logging.getLogger(__name__)

_INSTANT_SECONDS = 0.2e-3
"""What handing a run to another thread and its answer back takes at least."""

_LIGHT_SECONDS = 1e-3
"""What a thread does in less gets no shorter where others, which must wake first, take a part."""

_PROMPT_SECONDS = _LIGHT_SECONDS
"""For so long an event loop may be kept from others, who may come in the meantime."""

_SLOW_SECONDS = 2 * _LIGHT_SECONDS
_TRIALS = 5


def warm_up(runner: Runner, sizes: Sequence[int], lanes: int = 1, *, watched: bool = False) -> None:
    """Run black pictures in batches of `sizes` for the logits, and one for the first map as well.

    With several `lanes` a picture and the map also run as beside others.
    An engine may prepare itself anew for every size, and for every set of
    outputs. Requests for maps come alone more often than not, and for other
    outputs seldom, so that no start has to wait for those. Also finds out whether
    the runner is light, and whether it is prompt and instant, unless its runs are
    `watched` and not bounded: what is to be noticed where it hangs must not run on
    the event loop. Shows that the graph keeps its contract: raises BackendError.
    """
    started = time.monotonic()
    # The largest first: what it allocates does for the others.
    for size in sorted(sizes, reverse=True):
        runner.run(_black(runner, size), [LOGITS_OUTPUT])
    cam = next((name for name in runner.outputs if name.startswith(CAM_PREFIX)), None)
    explained = {**_black(runner, 1), CLASS_IDS_INPUT: np.full((1, 1), -1, dtype=np.int64)}
    if cam is not None:
        runner.run(explained, [LOGITS_OUTPUT, cam])
    if lanes > 1:
        runner.run(_black(runner, 1), [LOGITS_OUTPUT], beside=True)
        if cam is not None:
            runner.run(explained, [LOGITS_OUTPUT, cam], beside=True)
    may_hang = watched and not runner.bounded
    if runner.device == "cpu" and (lanes > 1 or not may_hang):
        shortest = _shortest_run(runner, beside=lanes > 1)
        runner.light = lanes > 1 and shortest < _LIGHT_SECONDS
        runner.prompt = 0 if may_hang else int(_PROMPT_SECONDS / shortest)
        runner.instant = not may_hang and shortest < _INSTANT_SECONDS
    runner.trim()
    trim_heap()
    logger.debug(
        "warmed up on %s in batches of %s in %.2f s",
        runner.backend,
        ", ".join(map(str, sorted(sizes))),
        time.monotonic() - started,
    )


def _shortest_run(runner: Runner, *, beside: bool) -> float:
    """Return the seconds of the shortest of a few runs; those of the first where they are many."""
    picture = _black(runner, 1)
    shortest = math.inf
    for _ in range(_TRIALS):
        started = time.perf_counter()
        runner.run(picture, [LOGITS_OUTPUT], beside=beside)
        shortest = min(shortest, time.perf_counter() - started)
        if shortest > _SLOW_SECONDS:
            break
    return shortest


def _black(runner: Runner, size: int) -> dict[str, Array]:
    return {IMAGE_INPUT: np.zeros((size, *runner.image_shape), dtype=np.uint8)}


def batch_sizes(policy: BatchPolicy, lanes: int = 1) -> tuple[int, ...]:
    """Return the sizes to warm up for: those preferred, or else powers of two up to the largest.

    One and the largest are always among them. Each of several `lanes` runs
    smaller ones, but two pictures where a batch may have several: a graph that
    makes one answer of them is not to be served.
    """
    share = policy.share(policy.max_batch, idle=1, lanes=lanes)
    most = max(share, min(2, policy.max_batch))
    between = policy.preferred_sizes or [1 << power for power in range((most - 1).bit_length())]
    return tuple(sorted({1, *between, most}))
