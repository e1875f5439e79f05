"""What glibc's heap keeps of what was freed."""

import ctypes
import os
from collections.abc import Callable

from foveate_runtime.cores import count_cores

# The parameters of mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8

_MAPPED = 1 << 20
"""From so many bytes on a block is given back when it is freed. By default glibc raises that to
what was freed last, up to 32 MB, and a picture's pixels then leave holes between what stays."""

_KEPT = 32 << 20
"""What is kept at the top of an arena, which must be said where the other is."""

_OF_THE_USER = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_")


def bound_heap() -> None:
    """Have threads share an arena a core, and large blocks given back; before threads start.

    By default there are eight arenas a core, each with holes of its own. Does nothing
    where the C library is not glibc, or the environment sets one of these itself.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None or any(name in os.environ for name in _OF_THE_USER):
        return
    mallopt(_ARENA_MAX, count_cores())
    mallopt(_MMAP_THRESHOLD, _MAPPED)
    mallopt(_TRIM_THRESHOLD, _KEPT)


def trim_heap() -> None:
    """Give the system what the heap holds beyond the need, where the C library is glibc."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """Return a function of the C library, None where it has no such one."""
    return getattr(ctypes.CDLL(None), name, None)
