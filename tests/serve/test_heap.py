"""How many arenas glibc's heap has, and what is given back of large blocks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    "glibc" not in os.confstr("CS_GNU_LIBC_VERSION") if hasattr(os, "confstr") else True,
    reason="of glibc",
)

THREADS = 12
PROGRAM = f"""
import ctypes, sys, threading
from foveate_serve.heap import bound_heap
from foveate_runtime.cores import count_cores

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "bound":
    bound_heap()
barrier = threading.Barrier({THREADS})

def work():
    block = libc.malloc(1000)
    barrier.wait()
    libc.free(block)

threads = [threading.Thread(target=work) for _ in range({THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(count_cores())
"""


def arenas(path: Path, kind: str, environment: dict[str, str]) -> tuple[int, int]:
    """Return how many arenas a process with many threads has, and how many cores."""
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, path],
        env={**os.environ, **environment},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return path.read_text(encoding="utf-8").count("<heap nr="), int(out)


def test_threads_share_an_arena_a_core(tmp_path: Path) -> None:
    found, cores = arenas(tmp_path / "info", "bound", {})
    assert 1 <= found <= max(cores, 1)


def test_by_default_there_are_more(tmp_path: Path) -> None:
    found, _ = arenas(tmp_path / "info", "left", {})
    assert found > 2


def test_what_the_environment_says_is_left(tmp_path: Path) -> None:
    found, cores = arenas(tmp_path / "info", "bound", {"MALLOC_ARENA_MAX": "1"})
    assert found == 1 <= cores
    found, cores = arenas(tmp_path / "info", "bound", {"MALLOC_ARENA_MAX": str(cores + 2)})
    assert found > cores or cores >= THREADS
