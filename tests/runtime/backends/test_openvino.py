"""What is particular to OpenVINO: one compiled model for each set of outputs."""

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest

from foveate_runtime.backends.openvino.runner import OpenVinoRunner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle

IMAGES = np.zeros((2, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def runner(colours: Bundle) -> OpenVinoRunner:
    runner = create_runner(colours, backend="openvino", threads=1)
    assert isinstance(runner, OpenVinoRunner)
    return runner


def compiled(runner: OpenVinoRunner) -> list[set[str]]:
    """The outputs of each compiled model, in the order in which they were wanted."""
    requests = [runner._compiled.get(outputs).request for outputs in runner._compiled.sets()]
    return [
        {name for output in request.get_compiled_model().outputs for name in output.names}
        for request in requests
    ]


def test_a_signal_is_handled_after_runners_come_and_go(colours: Bundle) -> None:
    program = f"""
import signal
from pathlib import Path
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle

bundle = Bundle.open(Path({str(colours.path)!r}))
first, second = (create_runner(bundle, backend="openvino", threads=1) for _ in range(2))
first.close()
del first
second.close()
del second
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_only_the_outputs_wanted_are_computed(runner: OpenVinoRunner) -> None:
    assert compiled(runner) == [{"logits"}]
    runner.run({"image": IMAGES}, ["features.planes"])
    runner.run({"image": IMAGES}, ["logits"])
    assert compiled(runner) == [{"logits"}, {"features.planes"}]
    runner.run({"image": IMAGES, "class_ids": np.array([[0], [1]])}, ["logits", "cam.cam"])
    assert compiled(runner)[-1] == {"logits", "cam.cam"}


def threads_kept_to_cores() -> set[int]:
    whole = os.sched_getaffinity(0)
    threads = (thread.id for thread in psutil.Process().threads())
    return {thread for thread in threads if os.sched_getaffinity(thread) != whole}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="asks Linux for each thread")
def test_its_threads_keep_to_no_core(colours: Bundle) -> None:
    before = threads_kept_to_cores()
    with create_runner(colours, backend="openvino", threads=2) as runner:
        runner.run({"image": IMAGES}, ["logits"])
        assert threads_kept_to_cores() <= before


def test_an_answer_outlives_the_next_run(runner: OpenVinoRunner) -> None:
    black = runner.run({"image": IMAGES}, ["logits"])["logits"]
    before = black.copy()
    runner.run({"image": IMAGES + 255}, ["logits"])
    np.testing.assert_array_equal(black, before)
