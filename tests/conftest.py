"""A real repository and a real server, for the tests that need no more than one of each."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .once import made_once
from .waiting import wait_until

TESTS = Path(__file__).parent

FOVEATE = Path(sys.executable).with_name("foveate")

SLOW = (
    "bench/test_command",
    "bench/test_loadgen",
    "bench/test_measuring",
    "bench/test_recommended_here",
    "bench/test_roofline",
    "clients/batch/test_command",
    "clients/batch/test_kill",
    "clients/batch/test_proxies_page",
    "clients/batch/test_ray",
    "clients/load",
    "clients/report/test_page",
    "clients/test_exceptions",
    "clients/test_fork",
    "clients/test_health_command",
    "clients/test_local",
    "clients/test_notebook",
    "clients/test_versions",
    "conformance",
    "deploy",
    "docs/test_client_pages",
    "docs/test_export_pages",
    "docs/test_notebooks",
    "docs/test_own_pictures_page",
    "docs/test_tutorial",
    "export/anatomy/test_l",
    "export/existing",
    "export/graph/test_attention",
    "export/graph/test_graph",
    "export/graph/test_heads",
    "export/graph/test_rules",
    "export/graph/test_scaled_heads",
    "export/graph/test_tokens",
    "export/proof",
    "export/publish",
    "export/test_",
    "integration",
    "runtime/backends",
    "runtime/remote/test_hub",
    "runtime/remote/test_registry",
    "serve/operations",
    "serve/transports/test_both",
    "train/studies",
    "train/test_architectures",
    "train/test_catalogue",
    "train/test_finetune",
    "train/test_huggingface",
    "train/test_networks",
    "train/test_processes",
    "train/test_recipe",
    "train/test_stages",
    "train/test_train_command",
    "train/test_training",
    "train/test_transfer",
    "train/visualize",
    "web/test_page",
)
"""Where the tests with the mark `slow` are: files that take more than some seconds."""

LONG = (
    "docs/test_notebooks",
    "docs/test_tutorial",
    "export/publish/test_tensorrt",
    "export/test_families",
    "packaging",
    "docs/test_own_pictures_page",
    "integration/test_demo",
    "export",
    "train",
)
"""Files that take longest, up to minutes, and start first: one that starts last is waited for."""

TRANSPORTS = ("grpcio", "http2")
"""What `foveate serve --transport` may name, the default first."""

BOTH = pytest.mark.parametrize("transport", TRANSPORTS, indirect=True)
"""Has a test start its servers once with each transport."""


def pytest_configure(config: pytest.Config) -> None:
    # Does nothing where MNIST is there; where it cannot be had, the tests that need it say so.
    if not hasattr(config, "workerinput"):
        script = Path(__file__).parents[1] / "scripts" / "fetch_mnist.sh"
        environment = {**os.environ, "VENV": str(Path(sys.executable).parents[1])}
        subprocess.run([script], check=False, env=environment)
        # Threads of torch beyond the cores wait for each other, which doubles what an export
        # takes. Processes of pytest-xdist inherit it, and what the tests start.
        processes = config.getoption("numprocesses", default=None) or 1
        threads = max(1, min(2, len(os.sched_getaffinity(0)) // processes))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # A shell that runs pytest in the background has it ignore SIGINT, and what
    # pytest starts would inherit that, so that no Ctrl-C could be tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what `make test-fast` does, before it is imported: that takes as long as a test."""
    left_out = "not slow" in config.option.markexpr and _name(collection_path).startswith(SLOW)
    return True if left_out else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _name(item.path).startswith(SLOW):
            item.add_marker("slow")
    items.sort(key=_turn)


def _name(path: Path) -> str:
    return path.relative_to(TESTS).as_posix()


def _turn(item: pytest.Item) -> int:
    """Return when its file starts: those of `LONG` in their order, the slow, then the quick."""
    name = _name(item.path)
    for turn, long in enumerate(LONG):
        if name.startswith(long):
            return turn
    return len(LONG) + (not name.startswith(SLOW))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """A thread of ours that outlives its test would end in the midst of another."""
    before = set(threading.enumerate())
    yield
    new = [thread for thread in threading.enumerate() if thread not in before]
    ours = [thread for thread in new if thread.name.startswith("foveate")]
    wait_until(
        lambda: not any(thread.is_alive() for thread in ours),
        told=lambda: f"it left {[thread.name for thread in ours if thread.is_alive()]}",
    )


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> str:
    """Return the transport of the servers that a test starts, which the test may set."""
    return str(getattr(request, "param", TRANSPORTS[0]))


@contextmanager
def served(repository: Path, *arguments: str | Path) -> Iterator[str]:
    """Run `foveate serve` over `repository`, and yield its address."""
    command = [FOVEATE, "serve", "--repository", repository, "--address", "127.0.0.1:0"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line, f"foveate serve ended with {process.wait()} before it was ready"
            yield line.split()[-1]
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def imagenet_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export EfficientNet-Lite0 with its ImageNet weights, as `efficientnet_lite0`.

    All processes of a run have the same folder: a test that changes it takes a copy.
    """

    def make(folder: Path) -> None:
        command = [FOVEATE, "export", "package:efficientnet_lite0"]
        command += ["--repository", folder, "--name", "efficientnet_lite0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return made_once(tmp_path_factory, "imagenet", make)


@pytest.fixture(scope="session")
def imagenet_server(imagenet_repository: Path) -> Iterator[str]:
    """Serve it; the address."""
    with served(imagenet_repository) as address:
        yield address
