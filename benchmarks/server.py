"""A real server in a process of its own, and what it has consumed."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

HELD = ("--backend", "onnxruntime", "--variant", "fp32")
"""Options of a server that is held to what the floor does."""

_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Server:
    """A running `foveate serve`."""

    address: str
    process: psutil.Process

    def tree(self) -> list[psutil.Process]:
        """Return the server's process and all below it."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Return the CPU time of the whole process tree so far, user and system."""
        return sum(_cpu_seconds(process.pid) for process in self.tree())

    def resident_bytes(self) -> int:
        """Return the resident set of the whole process tree."""
        return sum(process.memory_info().rss for process in self.tree())


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process by its clock; /proc counts in hundredths of a second."""
    clock = ctypes.c_int()
    if error := _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


@contextmanager
def serving(
    repository: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[Server]:
    """Start `foveate serve` on a free port, and stop it afterwards.

    `environment` is added to that of this process; `log` takes stderr.
    """
    foveate = Path(sys.executable).with_name("foveate")
    command = [foveate, "serve", "--repository", repository, "--address", "127.0.0.1:0", *arguments]
    variables = {**os.environ, **(environment or {})}
    with (
        Path(os.devnull if log is None else log).open("w", encoding="utf-8") as stderr,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=None if log is None else stderr,
            text=True,
            env=variables,
        ) as server,
    ):
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                raise RuntimeError("the server did not start")
            yield Server(line.split()[-1], psutil.Process(server.pid))
        finally:
            server.terminate()
