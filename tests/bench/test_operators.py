"""Every engine's own measurements of its operators come in one form."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from foveate_bench.operators import Profile, profile
from foveate_runtime.backends.base import Array, BackendError, OperatorTime, Runner
from foveate_runtime.backends.onnxruntime import profiling as onnxruntime_profiling
from foveate_runtime.backends.openvino.profiling import subtract
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.backends.torch.compiled import TorchCompileRunner
from foveate_runtime.bundle.bundle import Bundle

from .conftest import measurement

RUNS = 20
CASE = measurement((1.0,)).case


def seconds(name: str, value: float, calls: int = RUNS) -> OperatorTime:
    return OperatorTime(name=name, operator="Conv", calls=calls, seconds=value)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_a_run_is_split_up_among_its_operators(backend: str, colours: Bundle) -> None:
    # A large batch: OpenVINO leaves out what takes less than a microsecond.
    images = np.full((512, 8, 8, 3), 51, dtype=np.uint8)
    inputs = {"image": images, "class_ids": np.array([[-1], [2]] * 256)}
    outputs = ["logits", "cam.cam"]
    with create_runner(colours, backend=backend, threads=1) as runner:
        before = runner.run(inputs, outputs)
        times = runner.profile(inputs, outputs, warm_up=2, runs=RUNS)
        found = profile(runner, CASE, inputs, outputs, warm_up=2, runs=RUNS)
        after = runner.run(inputs, outputs)
    assert "Transpose" in {time.operator for time in times}
    assert {time.calls for time in times} == {RUNS}
    assert sum(time.seconds for time in times) > 0
    assert all(operator.calls == 1 for operator in found.operators)
    assert len(found.operators) == min(10, found.all_operators)
    slowest = [operator.milliseconds for operator in found.operators]
    assert slowest == sorted(slowest, reverse=True)
    assert sum(slowest) <= found.all_milliseconds * (1 + 1e-9)
    # Profiling leaves the runner as it was.
    for name in outputs:
        np.testing.assert_array_equal(before[name], after[name])


def test_the_slowest_come_first_with_their_share_of_all() -> None:
    times = [seconds(f"n{index}", index / 1000) for index in range(1, 13)]
    found = Profile.of(CASE, times, runs=RUNS)
    assert [operator.name for operator in found.operators] == [f"n{i}" for i in range(12, 2, -1)]
    assert found.all_operators == 12
    assert found.all_milliseconds == pytest.approx(78 / RUNS)
    assert found.operators[0].milliseconds == pytest.approx(12 / RUNS)
    assert found.operators[0].share == pytest.approx(12 / 78)


def test_operators_that_took_no_time_have_no_share() -> None:
    (operator,) = Profile.of(CASE, [seconds("n", 0.0)], runs=RUNS).operators
    assert operator.share == 0


def test_onnx_runtimes_file_is_read_from_the_first_run_that_counts(tmp_path: Path) -> None:
    events = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 99}]
    for start in (100, 200, 300):  # microseconds
        events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": 50})
        for index, (name, kind) in enumerate((("c", "Conv"), ("g", "Gemm"))):
            for suffix, duration in (("_fence_before", 1), ("_kernel_time", start // 10 + index)):
                events.append(
                    {
                        "cat": "Node",
                        "name": name + suffix,
                        "ts": start + index,
                        "dur": duration,
                        "args": {"op_name": kind, "node_index": str(index)},
                    }
                )
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events), encoding="utf-8")
    convolution, linear = onnxruntime_profiling.read(path, warm_up=1)
    assert (convolution.name, convolution.operator, convolution.calls) == ("c", "Conv", 2)
    assert convolution.seconds == pytest.approx(50e-6)
    assert (linear.name, linear.operator, linear.seconds) == ("g", "Gemm", pytest.approx(52e-6))


def test_warm_up_runs_are_taken_off_openvinos_sums() -> None:
    after = [seconds("slow", 0.010, 5), seconds("late", 0.002, 5), seconds("quick", 0.0, 5)]
    before = [seconds("slow", 0.006, 2), seconds("quick", 0.000_001, 2)]
    slow, late, quick = subtract(after, before, warm_up=2)
    assert (slow.calls, slow.seconds) == (3, pytest.approx(0.004))
    assert (late.calls, late.seconds) == (3, 0.002)
    assert quick.seconds == 0


class Mute(Runner):
    """A backend that runs and tells nothing."""

    backend: ClassVar[str] = "mute"

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return {name: np.zeros((1, 3), np.float32) for name in outputs}

    def close(self) -> None:
        """Have nothing to release."""


def test_a_backend_that_tells_nothing_says_so(colours: Bundle) -> None:
    images = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    with (
        Mute(colours, variant="fp32", device="cpu", threads=1) as runner,
        pytest.raises(BackendError, match="the backend 'mute' does not tell"),
    ):
        profile(runner, CASE, {"image": images}, ["logits"])


def test_merged_nodes_are_not_passed_off_as_what_ran(colours: Bundle) -> None:
    images = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    # Compiling takes seconds and changes nothing of this.
    runner = TorchCompileRunner.__new__(TorchCompileRunner)
    Runner.__init__(runner, colours, variant="fp32", device="cpu", threads=1)
    with pytest.raises(BackendError, match="'torch_compile' does not tell"):
        profile(runner, CASE, {"image": images}, ["logits"])


def test_only_what_can_be_run_can_be_profiled(colours: Bundle) -> None:
    images = np.zeros((1, 7, 8, 3), dtype=np.uint8)
    with (
        create_runner(colours, backend="onnxruntime", threads=1) as runner,
        pytest.raises(ValueError, match=r"uint8\[1, 7, 8, 3\]"),
    ):
        profile(runner, CASE, {"image": images}, ["logits"])
