"""Engines in processes of their own, and the rounds over them."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveate_bench.measuring import Measured, Rounds, _rounds, measure
from foveate_bench.plan import Choice, ModelPlan, make_plan
from foveate_bench.worker import Worker, WorkerError
from foveate_runtime.backends.base import BackendError

from .conftest import CPU_ONLY


class Stages:
    """Notes the stages, and how much of each was done."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.done: Counter[str] = Counter()
        self._now = ""

    def begin(self, text: str, total: float) -> None:
        self._now = text
        self.totals[text] = total

    def advance(self, amount: float) -> None:
        self.done[self._now] += amount


@pytest.fixture
def plan(golden_bundle: Path, labelled: Path) -> ModelPlan:
    choice = Choice(
        repository=golden_bundle.parents[1],
        models=("colours",),
        backends=("onnxruntime",),
        batches=(1, 2),
        threads=(1,),
        outputs=("logits", "cam"),
        data={"": labelled},
    )
    (model,) = make_plan(choice, CPU_ONLY).models
    return model


@pytest.fixture
def worker(plan: ModelPlan) -> Iterator[Worker]:
    with Worker(plan.bundle.path, plan.configurations[0], "logits", plan.images) as worker:
        yield worker


def test_every_case_has_a_turn_a_round_and_what_is_refused_stops_no_other(plan: ModelPlan) -> None:
    (able,) = plan.configurations
    unable = able.model_copy(update={"device": "toaster"})
    measured, stages = Measured(), Stages()
    measure(
        replace(plan, configurations=(unable, able)), Rounds(count=3, seconds=0), measured, stages
    )
    found = measured.measurements()
    assert [(m.case.outputs, m.case.batch) for m in found] == [
        ("logits", 1),
        ("logits", 2),
        ("cam", 1),
        ("cam", 2),
    ]
    for m in found:
        assert m.case.configuration == able
        assert len(m.round_medians_ms) == m.latency.runs == 3
        assert m.images_per_second == pytest.approx(1000 * m.case.batch / m.latency.mean_ms)
        assert m.cpu_seconds_per_image > 0
        assert m.peak_memory_bytes > 10_000_000
        assert m.build_seconds is None
    first, second, *_ = found
    assert first.first_request_seconds == second.first_request_seconds
    assert first.peak_memory_bytes <= second.peak_memory_bytes
    assert [r.what for r in measured.refusals] == [f"{unable}, logits", f"{unable}, cam"]
    assert all("no device 'toaster'" in r.reason for r in measured.refusals)
    (accuracy,) = measured.accuracies
    assert (accuracy.images, accuracy.top1, accuracy.top5) == (4, 0.75, 1)
    assert stages.done == pytest.approx(stages.totals)


def test_a_round_has_every_turn_once_in_an_order_of_its_own() -> None:
    turns = [(None, number) for number in range(6)]
    order = [number for _, number in _rounds(turns, 3)]  # type: ignore[arg-type]
    rounds = [tuple(order[start : start + 6]) for start in (0, 6, 12)]
    assert all(sorted(one) == list(range(6)) for one in rounds)
    assert len(set(rounds)) == 3


def test_a_process_outlives_ctrl_c_and_its_death_is_told(worker: Worker, plan: ModelPlan) -> None:
    pid = worker._process.pid
    assert pid is not None
    with pytest.raises(BackendError, match="not loaded"):
        worker.first(1)
    assert worker.load() > 0
    os.kill(pid, signal.SIGINT)
    logits = worker.logits(plan.images)
    assert logits.argmax(1).tolist() == [2, 1]  # blue and green, by their folders' order
    turn = worker.turn(2, 0.01)
    assert len(turn.seconds) >= 1
    assert np.sum(turn.seconds[:-1]) <= 0.01
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="the code -9, for want of memory"):
        worker.first(1)
