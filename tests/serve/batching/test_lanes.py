"""An engine that runs several batches at one time shares its cores among them, or gives one all."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import InferenceSession

from foveate_runtime.backends.onnxruntime.runner import OnnxRuntimeRunner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.cores import count_cores
from foveate_serve.batching.batcher import Batcher
from foveate_serve.batching.lane import Batched
from foveate_serve.batching.pacing import Pace
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.repository import warmup
from foveate_serve.repository.warmup import warm_up

from ...waiting import until
from .test_batcher import ask, colour

LANES = 3
LIGHT = Pace(light=True)


@pytest.fixture
def three_lanes(gated: object) -> object:
    gated.lanes = LANES
    return gated


async def occupy(batcher: Batcher, runner: object) -> list[asyncio.Future[Batched]]:
    """Hold every lane at a picture of its own, behind the runner's gate."""
    runner.gate.clear()
    calls = []
    for number in range(LANES):
        calls.append(asyncio.ensure_future(ask(batcher, colour(number))))
        await until(lambda: runner.entered.acquire(blocking=False))
    return calls


async def ask_behind_a_run(
    batcher: Batcher, runner: object, count: int
) -> list[asyncio.Future[Batched]]:
    """Ask for so many pictures while another one is held behind the runner's gate."""
    runner.gate.clear()
    calls = [asyncio.ensure_future(ask(batcher, colour(1)))]
    await until(lambda: runner.entered.acquire(blocking=False))
    calls += [asyncio.ensure_future(ask(batcher, colour(2 + number))) for number in range(count)]
    return calls


async def test_a_picture_alone_has_the_whole_engine(three_lanes: object) -> None:
    batcher = Batcher([three_lanes], BatchPolicy(max_batch=8))
    for number in range(4):
        await ask(batcher, colour(number))
    assert len(three_lanes.batches) == 4
    assert three_lanes.shared == []
    await batcher.close()


async def test_a_light_picture_has_one_thread_though_it_is_alone(three_lanes: object) -> None:
    batcher = Batcher([three_lanes], BatchPolicy(max_batch=8), LIGHT)
    await ask(batcher, colour(1))
    assert three_lanes.shared == [1]
    await batcher.close()


async def test_light_pictures_wait_for_the_lane_that_runs(three_lanes: object) -> None:
    batcher = Batcher([three_lanes], BatchPolicy(max_batch=4), LIGHT)
    calls = await ask_behind_a_run(batcher, three_lanes, 3)
    await until(lambda: batcher.waiting == 3)
    assert not three_lanes.entered.acquire(timeout=0.05)
    three_lanes.gate.set()
    await asyncio.gather(*calls)
    assert [size for size, _ in three_lanes.batches] == [1, 3]
    await batcher.close()


async def test_a_full_batch_of_light_pictures_has_a_lane_of_its_own(three_lanes: object) -> None:
    batcher = Batcher([three_lanes], BatchPolicy(max_batch=4), LIGHT)
    calls = await ask_behind_a_run(batcher, three_lanes, 5)
    await until(lambda: three_lanes.entered.acquire(blocking=False))
    await until(lambda: batcher.waiting == 1)
    three_lanes.gate.set()
    await asyncio.gather(*calls)
    assert sorted(size for size, _ in three_lanes.batches) == [1, 1, 4]
    await batcher.close()


async def test_what_comes_while_the_engine_runs_runs_beside_it(three_lanes: object) -> None:
    batcher = Batcher([three_lanes], BatchPolicy(max_batch=8))
    calls = await occupy(batcher, three_lanes)
    assert three_lanes.shared == [1] * (LANES - 1)
    started = three_lanes.running_since
    three_lanes.gate.set()
    answers = await asyncio.gather(*calls)
    assert [answer.batch_size for answer in answers] == [1] * LANES
    assert started is not None
    assert three_lanes.running_since is None
    await batcher.close()


async def test_idle_lanes_share_what_waits(three_lanes: object) -> None:
    batcher = Batcher([three_lanes], BatchPolicy(max_batch=8))
    busy = await occupy(batcher, three_lanes)
    calls = [asyncio.ensure_future(ask(batcher, colour(number))) for number in range(6)]
    await until(lambda: batcher.waiting == 6)
    with batcher._changed:  # so that all lanes are idle before the first takes its share
        three_lanes.gate.set()
        await until(lambda: three_lanes.running_since is None)
    answers = await asyncio.gather(*busy, *calls)
    assert len(answers) == LANES + 6
    assert max(size for size, _ in three_lanes.batches) == 2
    await batcher.close()


@pytest.mark.parametrize(
    ("policy", "shares"),
    [
        (BatchPolicy(max_batch=8), [1, 1, 2, 2, 2]),
        (BatchPolicy(max_batch=2), [1] * 5),
        (BatchPolicy(max_batch=4, max_delay=0.1), [4] * 5),
        (BatchPolicy(max_batch=4, preferred_sizes=(2,)), [4] * 5),
    ],
)
def test_a_lanes_share(policy: BatchPolicy, shares: list[int]) -> None:
    assert [policy.share(waiting, idle=3, lanes=3) for waiting in (1, 3, 5, 12, 100)] == shares


@pytest.mark.parametrize(
    ("lanes", "picture_seconds", "share"),
    [(2, 0.0, 8), (2, 0.0001, 8), (2, 0.005, 4), (2, 0.011, 2), (2, 1.0, 2), (1, 1.0, 16)],
)
def test_no_run_beside_others_is_long(lanes: int, picture_seconds: float, share: int) -> None:
    policy = BatchPolicy(max_batch=16)
    assert share == policy.share(100, idle=1, lanes=lanes, picture_seconds=picture_seconds)


async def test_a_lane_takes_less_of_what_takes_long(three_lanes: object) -> None:
    batcher = Batcher([three_lanes], BatchPolicy(max_batch=24))
    busy = await occupy(batcher, three_lanes)
    calls = [asyncio.ensure_future(ask(batcher, colour(100 + number))) for number in range(24)]
    await until(lambda: batcher.waiting == 24)
    batcher._pacing.picture_seconds, batcher._pacing.record = 0.005, lambda seconds: None
    three_lanes.gate.set()
    await asyncio.gather(*busy, *calls)
    assert max(size for size, _ in three_lanes.batches) == 4
    await batcher.close()


async def test_what_is_submitted_together_is_what_a_lane_takes(three_lanes: object) -> None:
    batcher = Batcher([three_lanes], BatchPolicy(max_batch=24))
    assert batcher.chunk_size == 8
    batcher._pacing.picture_seconds = 0.005
    assert batcher.chunk_size == 4
    await batcher.close()
    batcher = Batcher([three_lanes], BatchPolicy(max_batch=24), LIGHT)
    assert batcher.chunk_size == 24
    await batcher.close()


def test_the_policy_bounds_the_lanes(three_lanes: object) -> None:
    assert [BatchPolicy(lanes=lanes).lanes_of(three_lanes) for lanes in (0, 1, 2, 9)] == [
        3,
        1,
        2,
        3,
    ]


def test_a_batch_and_a_map_are_warmed_up_beside_others(
    three_lanes: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "_TRIALS", 0)
    warm_up(three_lanes, (1, 4), LANES)
    assert three_lanes.shared == [1, 1]


def test_onnx_runtime_gives_a_run_beside_others_one_thread(colours: Bundle) -> None:
    with OnnxRuntimeRunner(colours, variant="fp32", device="cpu", threads=2) as runner:
        inputs = {"image": np.stack([colour(200), colour(0, 200), colour(0, 0, 200)])}
        alone = runner.run(inputs, ["logits"])
        shared = runner.run(inputs, ["logits"], share_cores=True)
        assert np.array_equal(alone["logits"], shared["logits"])
        sessions = runner._graphs.plain
        assert threads_of(sessions.alone) == 2
        assert threads_of(sessions.shared) == 1


def threads_of(session: InferenceSession) -> int:
    return session.get_session_options().intra_op_num_threads


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_onnx_runtime_has_a_lane_for_each_thread(
    write_bundle: Callable[..., Path], threads: int
) -> None:
    with create_runner(
        Bundle.open(write_bundle()), backend="onnxruntime", threads=threads
    ) as runner:
        assert runner.lanes == (threads or count_cores())
