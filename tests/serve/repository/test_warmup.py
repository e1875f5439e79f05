"""An engine has run every batch that requests will make before it answers any of them."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.registry import create_runner
from foveate_serve.batching.pacing import Pace
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.repository import warmup
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State
from foveate_serve.repository.warmup import batch_sizes, warm_up


@pytest.mark.parametrize(
    ("policy", "sizes"),
    [
        (BatchPolicy(max_batch=1), (1,)),
        (BatchPolicy(max_batch=2), (1, 2)),
        (BatchPolicy(max_batch=6), (1, 2, 4, 6)),
        (BatchPolicy(max_batch=8), (1, 2, 4, 8)),
        (BatchPolicy(max_batch=8, preferred_sizes=(4, 6)), (1, 4, 6, 8)),
    ],
)
def test_sizes_are_those_that_batches_will_have(
    policy: BatchPolicy, sizes: tuple[int, ...]
) -> None:
    assert batch_sizes(policy) == sizes


@pytest.mark.parametrize(
    ("policy", "lanes", "sizes"),
    [
        (BatchPolicy(max_batch=8), 2, (1, 2, 4)),
        (BatchPolicy(max_batch=8), 16, (1, 2)),
        (BatchPolicy(max_batch=1), 16, (1,)),
        (BatchPolicy(max_batch=8, preferred_sizes=(4,)), 2, (1, 4, 8)),
        (BatchPolicy(max_batch=8, max_delay=0.1), 2, (1, 2, 4, 8)),
    ],
)
def test_a_lane_beside_others_runs_no_larger_batches_than_its_share(
    policy: BatchPolicy, lanes: int, sizes: tuple[int, ...]
) -> None:
    assert batch_sizes(policy, lanes) == sizes


def test_every_size_is_run_for_the_logits_and_one_picture_for_a_map(gated: object) -> None:
    warm_up(gated, (1, 2, 4))
    assert gated.batches[:4] == [
        (4, ("logits",)),
        (2, ("logits",)),
        (1, ("logits",)),
        (1, ("logits", "cam.cam")),
    ]
    # What comes after them finds out how long a picture takes.
    assert set(gated.batches[4:]) == {(1, ("logits",))}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(gated: object, value: float) -> None:
    run = gated.run

    def damaged(*arguments: object, **options: object) -> dict[str, np.ndarray]:
        outputs = run(*arguments, **options)
        logits = outputs["logits"].copy()
        logits[0, -1] = value
        return {**outputs, "logits": logits}

    gated.run = damaged
    with pytest.raises(BackendError, match="not finite"):
        warm_up(gated, (1, 2))


@pytest.mark.parametrize(
    ("milliseconds", "pictures", "runs"),
    [([1.5, 0.5, 0.15, 0.3, 0.4], 6, 5), ([0.3] * 5, 3, 5), ([1.1] * 5, 0, 5), ([3], 0, 1)],
    ids=["once-quick", "never-quick", "long", "slow"],
)
def test_runs_are_inline_by_the_shortest_of_a_few(
    gated: object,
    monkeypatch: pytest.MonkeyPatch,
    milliseconds: list[float],
    pictures: int,
    runs: int,
) -> None:
    monkeypatch.setattr(warmup, "_INLINE_SECONDS", 1e-3)
    ends = (stamp for took in milliseconds for stamp in (0.0, took / 1000))
    monkeypatch.setattr(warmup.time, "perf_counter", lambda: next(ends))
    assert warm_up(gated, (1,)).inline_pictures == pictures
    assert len(gated.batches) == 2 + runs


@pytest.mark.parametrize(
    ("lanes", "milliseconds", "light"),
    [(2, [3, 0.9, 1.1, 1.2, 1.3], True), (2, [1.1] * 5, False), (1, [0.5] * 5, False)],
    ids=["short", "long", "one-lane"],
)
def test_runs_are_light_by_its_shortest_run_on_one_thread(
    gated: object,
    monkeypatch: pytest.MonkeyPatch,
    lanes: int,
    milliseconds: list[float],
    light: bool,
) -> None:
    ends = (stamp for took in milliseconds for stamp in (0.0, took / 1000))
    monkeypatch.setattr(warmup.time, "perf_counter", lambda: next(ends))
    monkeypatch.setattr(warmup, "_SLOW_SECONDS", 4e-3)
    assert warm_up(gated, (1,), lanes).light is light
    # The picture and the map that are run beside others come before those measured.
    assert gated.shared == ([1] * 7 if lanes > 1 else [])


def test_what_waits_for_a_gpu_is_never_the_event_loop(
    gated: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "_INLINE_SECONDS", 60)
    gated.device = "cuda:0"
    assert warm_up(gated, (1,)) == Pace()


async def test_a_model_that_fails_to_warm_up_does_not_serve(
    write_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_bundle().parents[1]
    opened = []

    def make(bundle: object) -> object:
        runner = create_runner(bundle)
        run = runner.run

        def fail_on_eight(inputs: dict, outputs: list, **how: bool) -> dict:
            if len(inputs["image"]) == 8:
                raise BackendError("no memory for a batch of 8")
            return run(inputs, outputs, **how)

        monkeypatch.setattr(runner, "run", fail_on_eight)
        monkeypatch.setattr(runner, "close", lambda: opened.remove(runner))
        opened.append(runner)
        return runner

    repository = Repository(root, make, BatchPolicy(max_batch=8, lanes=1))
    await repository.open()
    ((status,),) = (model.versions for model in repository.models())
    assert (status.state, status.reason) == (State.FAILED, "no memory for a batch of 8")
    assert opened == []
    await repository.close()
