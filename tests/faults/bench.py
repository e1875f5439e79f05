"""What a fault is tried with: a repository, servers that can be killed, and what was seen."""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..colours import relist
from ..conftest import FOVEATE
from .honest import Honest

MODEL = "efficientnet_lite0"


@dataclass(frozen=True)
class Seen:
    """What clients saw of one fault: their calls by code, and the time until all succeeded again.

    `note` says what else was found, for the table.
    """

    codes: Mapping[str, int]
    recovery_seconds: float
    note: str


class Skipped(Exception):  # noqa: N818 - it is no error
    """The machine has not what the fault needs."""


@dataclass
class Server:
    """A running `foveate serve`."""

    address: str
    process: subprocess.Popen[str]
    log: Path

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as an operator would, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def children(self) -> list[psutil.Process]:
        """Return its workers."""
        return psutil.Process(self.process.pid).children()


@dataclass(frozen=True)
class Bench:
    """The folder of one fault, with a repository of its own."""

    folder: Path
    source: Path

    @property
    def repository(self) -> Path:
        """A copy of the model's bundle, made when it is first asked for."""
        path = self.folder / "repository"
        if not path.exists():
            shutil.copytree(self.source / MODEL, path / MODEL)
        return path

    @property
    def bundle(self) -> Path:
        """The folder of its version 1."""
        return self.repository / MODEL / "1"

    def add_version(self, version: str, files: Mapping[str, bytes]) -> None:
        """Put a copy of the bundle beside it, with other contents of some files."""
        new, ready = self.bundle.parent / version, self.folder / "ready"
        shutil.copytree(self.bundle, ready)
        manifest = json.loads((ready / "manifest.json").read_text(encoding="utf-8"))
        manifest["version"] = int(version)
        (ready / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        for name, content in files.items():
            (ready / name).write_bytes(content)
            relist(ready, name)
        ready.rename(new)

    @contextmanager
    def serving(
        self,
        *arguments: str,
        address: str = "127.0.0.1:0",
        prefix: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        repository: Path | None = None,
        program: tuple[str, ...] | None = None,
    ) -> Iterator[Server]:
        """Serve the repository; whatever is left of the server is killed afterwards.

        `program` takes the place of `foveate serve`.
        """
        log = self.folder / "server.log"
        command = [*prefix, *(program or (str(FOVEATE), "serve")), "--repository"]
        command += [str(repository or self.repository), "--address", address, *arguments]
        with log.open("a", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log.read_text(encoding="utf-8")
            yield Server(line.split()[-1], process, log)
        finally:
            # A stopped process of the group ends too.
            with_group(process.pid, signal.SIGKILL)
            process.wait()

    @contextmanager
    def asking(self, address: str, *, attempts: int = 1) -> Iterator[Honest]:
        """Ask a server all the while; no answer may ever be another picture's."""
        with Honest(address, MODEL, attempts=attempts) as honest:
            yield honest
        assert "WRONG" not in honest.codes()


def with_group(pid: int, sign: signal.Signals) -> None:
    """Send a signal to a process group that may be gone."""
    with suppress(ProcessLookupError):
        os.killpg(pid, sign)


def fixed_address() -> str:
    """Return an address that a server and the one after it can have."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return f"127.0.0.1:{found.getsockname()[1]}"


def seen(honest: Honest, note: str, *, allowed: frozenset[str]) -> Seen:
    """Return what was seen; codes that are not `allowed` are a failure."""
    codes = honest.codes()
    assert set(codes) <= {"OK", *allowed}, codes
    return Seen(codes, honest.recovery_seconds(), note)


Fault = Callable[[Bench], Seen]
"""Breaks something, and returns what was seen; an AssertionError is a promise that did not hold."""
