"""The cores of this process, and threads that keep to some of them."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Cores = frozenset[int]
"""Cores by their numbers; none means those of the process, whichever they are."""

ANY_CORE: Cores = frozenset()

CAN_PIN = hasattr(os, "sched_setaffinity")
"""Whether this system lets a thread choose its cores: Linux does."""


def count_cores() -> int:
    """Return how many cores this process may use: no more than its affinity and its quota allow."""
    quota = cpu_quota()
    return affine_cores() if quota is None else min(affine_cores(), math.ceil(quota))


def affine_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if CAN_PIN else os.cpu_count() or 1


def cpu_quota(process: Path = Path("/proc/self")) -> float | None:
    """Return how many cores' time the control groups of a process allow it, None for any.

    `docker run --cpus` and `limits.cpu` of Kubernetes set it: in `cpu.max` of
    cgroup v2, in `cpu.cfs_quota_us` of v1. The groups above bound it as well.
    """
    quotas = []
    # Elsewhere than on Linux there is no such file, and a container may hide some.
    with suppress(OSError, ValueError):
        for folder in _control_groups(process):
            with suppress(OSError, ValueError):
                quotas.append(_quota_of(folder))
    return min((quota for quota in quotas if quota > 0), default=None)


def _control_groups(process: Path) -> Iterator[Path]:
    """Yield the folders of the groups that bound a process's time, its own and those above."""
    groups = {}
    for line in (process / "cgroup").read_text("utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    for line in (process / "mountinfo").read_text("utf-8").splitlines():
        place, _, system = line.partition(" - ")
        _, _, _, root, mount, *_ = place.split(" ")
        kind, _, options = system.split(" ", 2)
        # Version 2 has one tree for all controllers, and no name for it.
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            own = groups.get("cpu" if kind == "cgroup" else "", "/")
            # In a container the root of the tree may be the container's own group.
            parts = [part for part in own.removeprefix(root).split("/") if part not in {"", ".."}]
            for depth in range(len(parts) + 1):
                yield Path(mount, *parts[:depth])


def _quota_of(folder: Path) -> float:
    """Return the cores that one group allows, 0 or less for any number."""
    if (folder / "cpu.max").exists():
        quota, period = (folder / "cpu.max").read_text("ascii").split()
        return 0.0 if quota == "max" else int(quota) / int(period)
    quota, period = (
        (folder / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period")
    )
    return int(quota) / int(period)


def deal_cores(instances: int) -> tuple[Cores, ...]:
    """Deal the cores of this process out to so many instances, in blocks of one size.

    Neighbours share caches, hence blocks. With more instances than cores,
    several share a core.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // instances)
    return tuple(
        frozenset(cores[(index * share + offset) % len(cores)] for offset in range(share))
        for index in range(instances)
    )


@contextmanager
def pinned(cores: Cores) -> Iterator[None]:
    """Keep the calling thread, and those it starts in the block, to `cores`."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
