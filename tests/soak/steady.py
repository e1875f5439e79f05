"""Whether what a server holds stays as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import psutil

WARM_SHARE = 0.25
"""Of the samples, the first, in which pools and caches fill."""

LIMITS = {"mebibytes": 32.0, "files": 8.0, "threads": 4.0}
"""How much more the last third may have than the first, in the median."""

_LEAST = 12


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the processes of a server hold together."""

    mebibytes: float
    files: int
    threads: int


def take(pid: int) -> Sample:
    """Return what a process and its children hold."""
    process = psutil.Process(pid)
    each = [process, *process.children(recursive=True)]
    return Sample(
        mebibytes=sum(p.memory_info().rss for p in each) / (1 << 20),
        files=sum(p.num_fds() for p in each),
        threads=sum(p.num_threads() for p in each),
    )


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """Return by how much the median of the last third exceeds that of the first, warm-up aside."""
    warm = samples[int(len(samples) * WARM_SHARE) :]
    if len(warm) < _LEAST:
        raise ValueError(f"{len(samples)} samples are too few: a soak takes longer")
    third = len(warm) // 3
    return {
        name: median(getattr(s, name) for s in warm[-third:])
        - median(getattr(s, name) for s in warm[:third])
        for name in LIMITS
    }


def leaks(samples: Sequence[Sample]) -> list[str]:
    """Return a sentence for each thing that grew by more than its limit."""
    return [
        f"{name} grew by {more:.1f}; the limit is {LIMITS[name]:g}"
        for name, more in growth(samples).items()
        if more > LIMITS[name]
    ]
