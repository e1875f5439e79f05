"""Runs a container of a manifest on this machine, and asks it as a kubelet would."""

import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError

from ..conftest import FOVEATE
from ..waiting import wait_until
from .manifests import Manifest, environment, pod_of

_ANYWHERE = re.compile(r"0\.0\.0\.0:[0-9]+")


class Pod:
    """A container that runs: its process, its probes, and where it listens."""

    def __init__(self, container: Manifest, process: "subprocess.Popen[str]", log: Path) -> None:
        self.container = container
        self.process = process
        self._log = log
        self.address = ""

    def text(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def url(self, word: str) -> str:
        """Return where it serves what a line of its log names."""
        found = re.search(rf"{word}[^\n]*?(https?://[0-9.:]+)", self.text())
        assert found, self.text()
        return found[1]

    def passes(self, probe: str) -> bool:
        """Ask once, as the manifest says; raise where it cannot be asked that way."""
        wanted = self.container[probe]
        asked = wanted["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        assert ports.get(asked["port"], asked["port"]) == 9090
        assert asked.get("scheme", "HTTP") == "HTTP"
        # A kubelet gives up after a second where the manifest says nothing, which is
        # short on a machine that runs other tests.
        timeout = 10 * wanted.get("timeoutSeconds", 1)
        try:
            with urllib.request.urlopen(  # noqa: S310 - our own server
                self.url("metrics and status") + asked["path"], timeout=timeout
            ) as answer:
                return bool(200 <= answer.status < 400)
        except HTTPError as error:
            error.close()
            return False
        except URLError:
            return False

    def terminate(self) -> float:
        """Send TERM and wait for the end; return the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)
        return time.monotonic() - began


@contextmanager
def started(
    container: Manifest, mounts: dict[str, Path], log: Path, *prefix: str | Path
) -> Iterator[Pod]:
    """Run a container of our images with its own environment and no other.

    `mounts` are the folders by their mountPath. Ports are free ones of this machine,
    and `prefix` is put before the command. Waits for the startup probe.
    """
    variables = {"HOME": str(log.parent), "ORT_DISABLE_TELEMETRY": "1"}
    for name, value in environment(container).items():
        local = _ANYWHERE.sub("127.0.0.1:0", value)
        for path, folder in mounts.items():
            if local == path or local.startswith(f"{path}/"):
                local = str(folder) + local.removeprefix(path)
        variables[name] = local
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(
            [*prefix, FOVEATE, *container["args"]],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=variables,
        ) as process,
    ):
        pod = Pod(container, process, log)
        try:
            wait_until(
                lambda: "metrics and status" in pod.text() or process.poll() is not None, pod.text
            )
            wait_until(lambda: pod.passes("startupProbe"), pod.text)
            line = process.stdout.readline()
            assert line, pod.text()
            pod.address = line.split()[-1]
            yield pod
        finally:
            if process.poll() is None:
                process.kill()


def server(manifests: list[Manifest]) -> Manifest:
    """Return the server's container."""
    (container,) = pod_of(manifests)["containers"]
    found: Manifest = container
    return found
