"""Bounds and trims the free memory that glibc's heap keeps."""

import ctypes
import os
from collections.abc import Callable

from foveate_runtime.cores import count_cores

# The parameters of mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8

_MAPPED = 1 << 20
"""Blocks of at least so many bytes return to the system when they are freed. By default glibc
raises this to the largest block freed, up to 32 MB, and pictures' pixels then fragment the heap."""

_KEPT = 32 << 20
"""The free memory that stays at the top of an arena: glibc's value once the other is set."""

_OF_THE_USER = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_")


def bound_heap() -> None:
    """Limit glibc's heap to an arena a core, and return large freed blocks to the system.

    By default there are eight arenas a core, each fragmented. Does nothing where the C
    library is not glibc, or the environment sets one of these parameters. Must be
    called before threads start.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None or any(name in os.environ for name in _OF_THE_USER):
        return
    mallopt(_ARENA_MAX, count_cores())
    mallopt(_MMAP_THRESHOLD, _MAPPED)
    mallopt(_TRIM_THRESHOLD, _KEPT)


def trim_heap() -> None:
    """Return the heap's free memory to the system, where the C library is glibc."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """Return a function of the C library, None where it has none of this name."""
    return getattr(ctypes.CDLL(None), name, None)
