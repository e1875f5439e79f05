"""Two commands that add engines to one bundle at the same time both find theirs in it."""

import fcntl
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from foveate_export.exporter import Exported
from foveate_export.publish.tensorrt import engines
from foveate_export.publish.tensorrt.engines import add_engines
from foveate_export.publish.tensorrt.target import choose_target
from foveate_runtime.bundle.bundle import Bundle

PATIENCE = 60


def test_engines_of_two_commands_are_both_named(
    convnet4_export: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "digits" / "1"
    shutil.copytree(convnet4_export.path, bundle)
    publishing, another_waits = Event(), Event()
    lock, write = fcntl.flock, engines._write_manifest

    def watched(descriptor: int, operation: int) -> None:
        if publishing.is_set():
            another_waits.set()
        lock(descriptor, operation)

    def delayed(*arguments: object) -> None:
        publishing.set()
        assert another_waits.wait(PATIENCE), "the other publishes as well"
        write(*arguments)

    monkeypatch.setattr(engines.fcntl, "flock", watched)
    monkeypatch.setattr(engines, "_write_manifest", delayed)
    monkeypatch.setattr(engines, "build", lambda *_: b"an engine")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(add_engines, bundle, ["fp32"], choose_target("tensorrt_rtx", ["8.6"]))
        assert publishing.wait(PATIENCE)
        second = pool.submit(add_engines, bundle, ["fp32"], choose_target("tensorrt_rtx", ["8.9"]))
        built = [sidecar.stem for future in (first, second) for sidecar in future.result()]
    assert len(built) == 4
    named = Bundle.open(bundle).manifest.files
    assert {f"engines/{stem}.engine" for stem in built} <= named.keys()
