"""Requests that wait together run together, and each gets its own answer."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from foveate_runtime.cores import ANY_CORE, deal_cores
from foveate_serve.batching import lane as lanes
from foveate_serve.batching.batcher import Batcher
from foveate_serve.batching.lane import Batched
from foveate_serve.batching.pacing import Pace
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.errors import DeadlineError, EngineError, OverloadedError
from foveate_serve.log_context import CLIENT
from foveate_serve.observer import BatchRun

from ...waiting import LIMIT_SECONDS, until

LOGITS = ("logits",)
WITH_CAM = ("logits", "cam.cam")
MAP = {"outputs": WITH_CAM, "class_ids": (0,)}


def colour(red: int, green: int = 0, blue: int = 0) -> np.ndarray:
    return np.full((8, 8, 3), (red, green, blue), dtype=np.uint8)


async def ask(batcher: Batcher, image: np.ndarray, *, priority: int = 0, **wanted) -> Batched:
    """Submit one picture; return its share, whose outputs lack the dimension of the pictures."""
    options = {"outputs": LOGITS, "class_ids": ()} | wanted
    options["class_ids"] = [options["class_ids"]]
    with batcher.reserve(priority=priority) as reservation:
        share = await batcher.submit(reservation, image[np.newaxis], **options)
    return replace(share, outputs={name: values[0] for name, values in share.outputs.items()})


class Held:
    """A batcher whose engine is busy with one picture until `release`."""

    def __init__(self, batcher: Batcher, runner: "GatedRunner", first: Awaitable[Batched]) -> None:  # noqa: F821
        self.batcher, self.runner, self.first = batcher, runner, first

    async def queue(self, *calls: Awaitable[Batched]) -> list[asyncio.Task[Batched]]:
        tasks = []
        for call in calls:
            expected = self.batcher.waiting + 1
            tasks.append(asyncio.ensure_future(call))
            await until(lambda wanted=expected: self.batcher.waiting == wanted)
        return tasks

    async def release(self) -> None:
        self.runner.gate.set()
        await self.first


@asynccontextmanager
async def holding(gated, policy: BatchPolicy, pace: Pace | None = None) -> AsyncIterator[Held]:
    batcher = Batcher([gated], policy, pace)
    gated.gate.clear()
    # A map never runs on the event loop, whatever the pace.
    first = asyncio.ensure_future(
        ask(batcher, colour(1), priority=1, **({} if pace is None else MAP))
    )
    await until(lambda: gated.entered.acquire(blocking=False))
    yield Held(batcher, gated, first)
    gated.gate.set()
    await batcher.close()


@pytest_asyncio.fixture
async def held(gated) -> AsyncIterator[Held]:
    async with holding(gated, BatchPolicy(max_batch=4, max_queue=6)) as held:
        yield held


async def test_a_lone_request_does_not_wait(gated) -> None:
    batcher = Batcher([gated], BatchPolicy(max_batch=64))
    result = await ask(batcher, colour(255))
    np.testing.assert_allclose(result.outputs["logits"], [1.25, 0, -0.25], atol=1e-6)
    assert result.batch_size == 1
    assert result.queue_seconds < LIMIT_SECONDS
    await batcher.close()


def threads_of_runs(runner: "GatedRunner") -> list[threading.Thread]:  # noqa: F821
    """Have a runner note the thread of each run, and return where."""
    ran, threads = runner._run, []

    def run(inputs, outputs):
        threads.append(threading.current_thread())
        return ran(inputs, outputs)

    runner._run = run
    return threads


async def test_short_runs_change_no_thread(gated) -> None:
    threads, runs = threads_of_runs(gated), []
    batcher = Batcher([gated], pace=Pace(inline_pictures=5), on_batch=runs.append)
    alone = await ask(batcher, colour(200))
    assert alone.outputs["logits"].argmax() == 0
    assert alone.batch_size == 1
    with pytest.raises(EngineError):
        await ask(batcher, colour(13))
    # A map may have to be prepared, and takes longer.
    await ask(batcher, colour(200), outputs=WITH_CAM, class_ids=[1])
    both = await asyncio.gather(ask(batcher, colour(200)), ask(batcher, colour(0, 200)))
    assert [answer.outputs["logits"].argmax() for answer in both] == [0, 1]
    await batcher.close()
    here = threading.current_thread()
    assert [thread is here for thread in threads] == [True, True, False, True]
    assert [run.size for run in runs] == [1, 1, 2]


@pytest.mark.parametrize(
    "policy",
    [
        BatchPolicy(max_delay=0.001),
        BatchPolicy(preferred_sizes=(1, 4)),
        BatchPolicy(cores=(frozenset(os.sched_getaffinity(0)),)),
    ],
    ids=["delay", "sizes", "cores"],
)
async def test_short_runs_keep_to_the_policy(gated, policy: BatchPolicy) -> None:
    threads = threads_of_runs(gated)
    batcher = Batcher([gated], policy, Pace(inline_pictures=5))
    await ask(batcher, colour(200))
    await batcher.close()
    assert threading.current_thread() not in threads


async def test_more_pictures_than_run_inline_have_a_thread(gated) -> None:
    threads = threads_of_runs(gated)
    batcher = Batcher([gated], pace=Pace(inline_pictures=2))
    for count in (1, 2, 3):
        values = [colour(*channels) for channels in ((200,), (0, 200), (0, 0, 200))[:count]]
        answers = await asyncio.gather(*(ask(batcher, value) for value in values))
        assert [answer.outputs["logits"].argmax() for answer in answers] == [*range(count)]
    await batcher.close()
    assert [thread is threading.current_thread() for thread in threads] == [True, True, False]


@pytest.mark.parametrize(
    "pace", [Pace(light=True), Pace(inline_pictures=1), Pace(inline_pictures=5)]
)
async def test_light_pictures_gather_while_the_loop_brings_more(gated, pace: Pace) -> None:
    batcher = Batcher([gated], BatchPolicy(max_batch=4), pace)

    async def later(rounds: int) -> Batched:
        for _ in range(rounds):
            await asyncio.sleep(0)
        return await ask(batcher, colour(10 * rounds))

    # Within a round they come before the look at what has come.
    for count in (3, 6):
        await asyncio.gather(*(later(rounds) for rounds in reversed(range(count))))
    await batcher.close()
    assert [size for size, _ in gated.batches] == [3, 4, 2]


async def test_a_batch_of_short_runs_gathers_while_the_engine_is_busy(gated) -> None:
    policy, pace = BatchPolicy(max_batch=4, max_queue=6), Pace(inline_pictures=5)
    async with holding(gated, policy, pace) as held:
        waiting = await held.queue(*(ask(held.batcher, colour(200)) for _ in range(4)))
        await held.release()
        assert {answer.batch_size for answer in await asyncio.gather(*waiting)} == {4}


async def test_what_waits_while_the_engine_runs_forms_batches(held: Held) -> None:
    tasks = await held.queue(
        *(ask(held.batcher, colour(value)) for value in (50, 100, 150, 200, 250))
    )
    await held.release()
    results = await asyncio.gather(*tasks)
    assert [size for size, _ in held.runner.batches] == [1, 4, 1]
    found = [result.outputs["logits"][0] for result in results]
    np.testing.assert_allclose(found, np.array([50, 100, 150, 200, 250]) / 255 + 0.25, atol=1e-6)
    assert [result.batch_size for result in results] == [4, 4, 4, 4, 1]


async def test_a_batch_holds_one_kind_of_outputs_led_by_the_oldest(held: Held) -> None:
    submit = partial(ask, held.batcher)
    tasks = await held.queue(
        submit(colour(10)),
        submit(colour(20, 40, 60), outputs=WITH_CAM, class_ids=[2]),
        submit(colour(30)),
        submit(colour(90, 70, 50), outputs=WITH_CAM, class_ids=[0, 1, -1]),
    )
    await held.release()
    plain, one, _, three = await asyncio.gather(*tasks)
    assert held.runner.batches[1:] == [(2, LOGITS), (2, WITH_CAM)]
    assert set(plain.outputs) == {"logits"}
    # Padding to the longest list of classes is cut off again.
    assert one.outputs["cam.cam"].shape == (1, 8, 8)
    np.testing.assert_allclose(one.outputs["cam.cam"][:, 0, 0] * 255, [60], atol=1e-4)
    np.testing.assert_allclose(three.outputs["cam.cam"][:, 0, 0] * 255, [90, 70, 90], atol=1e-4)


async def ask_all(batcher: Batcher, *images: np.ndarray, **wanted) -> Batched:
    class_ids = wanted.pop("class_ids", [[]] * len(images))
    with batcher.reserve(len(images)) as reservation:
        return await batcher.submit(
            reservation, np.stack(images), class_ids=class_ids, **({"outputs": LOGITS} | wanted)
        )


async def test_pictures_submitted_together_share_a_batch_with_others(held: Held) -> None:
    one = await held.queue(ask(held.batcher, colour(50)))
    two = asyncio.ensure_future(ask_all(held.batcher, colour(100), colour(150)))
    await until(lambda: held.batcher.waiting == 3)
    three = asyncio.ensure_future(ask_all(held.batcher, *map(colour, (200, 210, 220))))
    await until(lambda: held.batcher.waiting == 6)
    await held.release()
    found = [(await task).outputs["logits"] for task in (*one, two, three)]
    assert [logits.shape for logits in found] == [(3,), (2, 3), (3, 3)]
    reds = np.concatenate([np.atleast_2d(logits)[:, 0] for logits in found])
    expected = np.array([50, 100, 150, 200, 210, 220]) / 255 + 0.25
    np.testing.assert_allclose(reds, expected, atol=1e-6)
    # The three do not fit beside the others, and stay together.
    assert [size for size, _ in held.runner.batches] == [1, 3, 3]
    assert (await two).batch_size == 3


async def test_maps_of_pictures_submitted_together(held: Held) -> None:
    wanted = {"outputs": WITH_CAM, "class_ids": [[0, 1], [2, -1]]}
    two = asyncio.ensure_future(
        ask_all(held.batcher, colour(90, 70, 50), colour(10, 20, 30), **wanted)
    )
    await until(lambda: held.batcher.waiting == 2)
    one = asyncio.ensure_future(ask(held.batcher, colour(60), outputs=WITH_CAM, class_ids=[0]))
    await until(lambda: held.batcher.waiting == 3)
    await held.release()
    cams = (await two).outputs["cam.cam"]
    assert cams.shape == (2, 2, 8, 8)
    np.testing.assert_allclose(cams[..., 0, 0] * 255, [[90, 70], [30, 10]], atol=1e-4)
    np.testing.assert_allclose((await one).outputs["cam.cam"][:, 0, 0] * 255, [60], atol=1e-4)
    assert held.runner.batches[1:] == [(3, WITH_CAM)]


async def test_pictures_that_fail_together_fail_no_others(held: Held) -> None:
    bad = asyncio.ensure_future(ask_all(held.batcher, colour(13), colour(50)))
    await until(lambda: held.batcher.waiting == 2)
    good = asyncio.ensure_future(ask_all(held.batcher, colour(100), colour(150)))
    await until(lambda: held.batcher.waiting == 4)
    await held.release()
    with pytest.raises(EngineError):
        await bad
    np.testing.assert_allclose(
        (await good).outputs["logits"][:, 0], np.array([100, 150]) / 255 + 0.25, atol=1e-6
    )


async def test_a_full_queue_refuses_and_says_when_to_come_again(held: Held) -> None:
    tasks = await held.queue(*(ask(held.batcher, colour(i)) for i in range(6)))
    with pytest.raises(OverloadedError) as raised:
        await ask(held.batcher, colour(9))
    assert raised.value.reason == "QUEUE_FULL"
    assert raised.value.metadata == {"limit": "6"}
    assert raised.value.retry_delay.total_seconds() > 0
    await held.release()
    assert len(await asyncio.gather(*tasks)) == 6


def of_client(name: str, asking: Coroutine[Any, Any, Batched]) -> asyncio.Task[Batched]:
    """Ask as the connection of this name."""
    context = copy_context()
    context.run(CLIENT.set, lambda: name)
    return asyncio.get_running_loop().create_task(asking, context=context)


async def test_one_connection_leaves_room_in_the_queue_for_others(gated) -> None:
    async with holding(gated, BatchPolicy(max_batch=8, max_queue=64)) as held:
        flood = [of_client("a", ask(held.batcher, colour(100))) for _ in range(64)]
        await until(lambda: held.batcher.waiting == 56)
        refused = [task for task in flood if task.done()]
        assert len(refused) == 8
        assert {task.exception().reason for task in refused} == {"QUEUE_FULL"}
        other = [of_client("b", ask(held.batcher, colour(9))) for _ in range(7)]
        await until(lambda: held.batcher.waiting == 63)
        with pytest.raises(OverloadedError):
            await of_client("a", ask(held.batcher, colour(9)))
        await held.release()
        await asyncio.gather(*other, *(task for task in flood if task not in refused))
        # What a connection had counts no more.
        again = [of_client("a", ask(held.batcher, colour(100))) for _ in range(20)]
        await asyncio.gather(*again)


async def test_cancelled_requests_leave_room_in_a_full_queue_and_never_run(held: Held) -> None:
    tasks = await held.queue(*(ask(held.batcher, colour(i)) for i in range(6)))
    for task in tasks[:5]:
        task.cancel()
    await asyncio.wait(tasks[:5])
    late = asyncio.ensure_future(ask(held.batcher, colour(200)))
    await until(lambda: held.batcher.waiting == 2)
    await held.release()
    await asyncio.gather(tasks[5], late)
    assert [size for size, _ in held.runner.batches] == [1, 2]


async def test_expired_requests_never_run(held: Held) -> None:
    deadline = time.monotonic() + 0.01
    tasks = await held.queue(
        ask(held.batcher, colour(1), outputs=LOGITS, deadline=deadline),
        ask(held.batcher, colour(2), outputs=LOGITS, deadline=time.monotonic() + 60),
    )
    await until(lambda: time.monotonic() > deadline)
    await held.release()
    with pytest.raises(DeadlineError):
        await tasks[0]
    assert (await tasks[1]).batch_size == 1
    assert [size for size, _ in held.runner.batches] == [1, 1]


async def test_one_bad_picture_fails_alone(held: Held) -> None:
    tasks = await held.queue(*(ask(held.batcher, colour(value)) for value in (50, 13, 150)))
    await held.release()
    good, bad, other = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(bad, EngineError)
    np.testing.assert_allclose(good.outputs["logits"][0], 50 / 255 + 0.25, atol=1e-6)
    np.testing.assert_allclose(other.outputs["logits"][0], 150 / 255 + 0.25, atol=1e-6)


async def test_an_error_nobody_foresaw_reaches_its_caller_and_the_batcher_goes_on(
    gated, caplog: pytest.LogCaptureFixture
) -> None:
    batcher = Batcher([gated])
    with pytest.raises(EngineError):
        await ask(batcher, colour(1), outputs=["nonsense"])
    assert "no output 'nonsense'" in caplog.text
    assert (await ask(batcher, colour(1))).batch_size == 1
    await batcher.close()


async def test_whatever_fails_after_a_run_reaches_the_callers_as_well(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise IndexError("fewer rows than pictures")

    tasks = await held.queue(*(ask(held.batcher, colour(i)) for i in range(3)))
    await held.release()
    await asyncio.gather(*tasks)
    held.runner.gate.clear()
    monkeypatch.setattr(lanes, "share_of", fail)
    tasks = [asyncio.ensure_future(ask(held.batcher, colour(i))) for i in range(4)]
    held.runner.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineError] * 4
    assert len({id(outcome) for outcome in outcomes}) == 4
    monkeypatch.undo()
    assert (await ask(held.batcher, colour(200))).outputs["logits"].argmax() == 0


async def test_an_observer_that_fails_keeps_no_answer_back(gated) -> None:
    def fail(run: BatchRun) -> None:
        raise LookupError("no such metric")

    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    batcher = Batcher([gated], on_batch=fail)
    assert (await ask(batcher, colour(200))).outputs["logits"].argmax() == 0
    await batcher.close()
    assert [type(error["exception"]) for error in errors] == [LookupError]


async def test_closing_answers_what_waits_and_leaves_no_thread(held: Held) -> None:
    tasks = await held.queue(*(ask(held.batcher, colour(i)) for i in range(5)))
    closing = asyncio.ensure_future(held.batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="closed"):
        await ask(held.batcher, colour(1))
    await held.release()
    assert len(await asyncio.gather(*tasks)) == 5
    await closing
    assert "foveate-engine-0" not in {thread.name for thread in threading.enumerate()}


PRIORITIES = BatchPolicy(max_batch=2, max_queue=6, priority_queues=(2, 5, 3), default_priority=2)


@pytest_asyncio.fixture
async def ranked(gated) -> AsyncIterator[Held]:
    async with holding(gated, PRIORITIES) as held:
        yield held


async def test_the_highest_priority_runs_first_and_each_in_its_order(ranked: Held) -> None:
    order: list[int] = []

    async def noted(value: int, priority: int) -> Batched:
        result = await ask(ranked.batcher, colour(value), priority=priority)
        order.append(value)
        return result

    # 0 is the default, 2, and what is below the lowest is the lowest.
    tasks = await ranked.queue(
        noted(10, 3), noted(20, 2), noted(30, 9), noted(40, 1), noted(50, 0), noted(60, 1)
    )
    await ranked.release()
    await asyncio.gather(*tasks)
    assert order == [40, 60, 20, 50, 10, 30]


async def test_a_flood_of_low_priority_leaves_room_for_higher_ones(ranked: Held) -> None:
    low = await ranked.queue(*(ask(ranked.batcher, colour(i), priority=3) for i in range(3)))
    with pytest.raises(OverloadedError) as raised:
        await ask(ranked.batcher, colour(9), priority=3)
    assert raised.value.metadata == {"limit": "3"}
    middle = await ranked.queue(*(ask(ranked.batcher, colour(i)) for i in range(5)))
    with pytest.raises(OverloadedError):
        await ask(ranked.batcher, colour(9), priority=2)
    assert not ranked.batcher.full
    high = await ranked.queue(*(ask(ranked.batcher, colour(i), priority=1) for i in range(2)))
    assert ranked.batcher.full
    await ranked.release()
    assert len(await asyncio.gather(*low, *middle, *high)) == 10


async def test_what_waits_at_higher_priorities_counts_for_the_lower_ones(ranked: Held) -> None:
    tasks = await ranked.queue(
        *(ask(ranked.batcher, colour(i), priority=1) for i in range(2)),
        *(ask(ranked.batcher, colour(i), priority=2) for i in range(4)),
    )
    with pytest.raises(OverloadedError) as raised:
        await ask(ranked.batcher, colour(9), priority=2)
    assert "6 pictures wait" in raised.value.message
    await ranked.release()
    await asyncio.gather(*tasks)


async def test_places_are_held_from_before_the_picture_is_there(held: Held) -> None:
    with held.batcher.reserve(5):
        with pytest.raises(OverloadedError), held.batcher.reserve(2):
            pass
        with held.batcher.reserve(1):
            assert held.batcher.full
            assert held.batcher.waiting == 0
    assert not held.batcher.full
    # A request of more pictures than may wait is let in where nothing does.
    with held.batcher.reserve(7), pytest.raises(OverloadedError), held.batcher.reserve(1):
        pass


async def test_what_would_be_late_behind_those_who_wait_is_refused(gated) -> None:
    batcher = Batcher([gated], BatchPolicy(max_batch=4, max_queue=6))
    batcher._pacing.picture_seconds = 10.0
    now = time.monotonic()
    # Where nothing waits it is let in: nobody would learn otherwise that runs are faster now.
    with batcher.reserve(2, deadline=now + 1):
        with pytest.raises(OverloadedError) as raised, batcher.reserve(deadline=now + 19):
            pass
        assert raised.value.reason == "DEADLINE_TOO_SHORT"
        assert raised.value.retry_delay.total_seconds() == 20
        for deadline in (None, now + 20 + LIMIT_SECONDS):
            with batcher.reserve(deadline=deadline):
                assert batcher.backlog_seconds == 30
    await batcher.close()


async def test_the_time_to_come_again_is_that_of_what_waits(gated) -> None:
    batcher = Batcher([gated], BatchPolicy(max_batch=4, max_queue=6))
    await ask(batcher, colour(1))  # so that the batcher knows how long a picture takes
    with batcher.reserve(1):
        single = batcher.backlog_seconds
    with batcher.reserve(6):
        assert batcher.backlog_seconds == pytest.approx(6 * single)
    assert batcher.backlog_seconds == 0
    await batcher.close()


async def test_a_preferred_size_ends_the_wait_for_a_batch_to_fill(gated) -> None:
    policy = BatchPolicy(max_batch=8, preferred_sizes=(3, 8), max_delay=30)
    batcher = Batcher([gated], policy)
    results = await asyncio.gather(*(ask(batcher, colour(i)) for i in range(3)))
    assert [result.batch_size for result in results] == [3, 3, 3]
    await batcher.close()


async def test_instances_run_at_one_time_from_one_queue(make_gated) -> None:
    runners = [make_gated() for _ in range(3)]
    runs: list[BatchRun] = []
    cores = tuple(deal_cores(3))
    batcher = Batcher(runners, BatchPolicy(max_batch=1, cores=cores), on_batch=runs.append)
    for runner in runners:
        runner.gate.clear()
    tasks = [asyncio.ensure_future(ask(batcher, colour(i))) for i in range(3)]
    for runner in runners:
        await until(lambda runner=runner: runner.entered.acquire(blocking=False))
    # Each is held on its cores, and at work on a picture of its own.
    assert [runner.affinity for runner in runners] == list(cores)
    tasks += [asyncio.ensure_future(ask(batcher, colour(i))) for i in range(3)]
    await until(lambda: batcher.waiting == 3)
    runners[1].gate.set()
    await asyncio.gather(*tasks[3:])
    assert [len(runner.batches) for runner in runners] == [0, 4, 0]
    for runner in runners:
        runner.gate.set()
    await asyncio.gather(*tasks)
    assert sorted(run.lane for run in runs) == [0, 1, 1, 1, 1, 2]
    assert all(run.infer > 0 and run.gather >= 0 and run.split >= 0 for run in runs)
    await batcher.close()


async def test_closing_several_instances_answers_what_waits_and_leaves_no_thread(
    make_gated,
) -> None:
    runners = [make_gated() for _ in range(2)]
    batcher = Batcher(runners, BatchPolicy(max_batch=1, cores=(ANY_CORE,) * 2))
    before = set(threading.enumerate())
    for runner in runners:
        runner.gate.clear()
    tasks = [asyncio.ensure_future(ask(batcher, colour(i))) for i in range(5)]
    await until(lambda: batcher.waiting == 3)
    closing = asyncio.ensure_future(batcher.close())
    await asyncio.sleep(0)
    for runner in runners:
        runner.gate.set()
    await closing
    assert [task.result().batch_size for task in tasks] == [1] * 5
    names = {thread.name for thread in before - set(threading.enumerate())}
    assert names == {"foveate-engine-0", "foveate-engine-1"}


async def test_a_model_serves_while_one_of_its_instances_lives(make_gated) -> None:
    runners = [make_gated() for _ in range(2)]
    lives: list[bool] = []
    policy = BatchPolicy(max_batch=1, cores=(ANY_CORE,) * 2)
    batcher = Batcher(runners, policy, on_alive=lives.append)
    for runner in runners:
        runner.gate.clear()
    first = asyncio.ensure_future(ask(batcher, colour(1)))
    busy: list = []
    await until(
        lambda: any(r.entered.acquire(blocking=False) and not busy.append(r) for r in runners)
    )
    (idle,) = (runner for runner in runners if runner is not busy[0])
    Dying(idle, times=1)
    with pytest.raises(EngineError):
        await ask(batcher, colour(2))
    waiting = asyncio.ensure_future(ask(batcher, colour(3)))
    for runner in runners:
        runner.gate.set()
    assert (await waiting).batch_size == (await first).batch_size == 1
    assert lives == []
    await batcher.close()


async def test_with_a_delay_an_idle_engine_waits_for_a_batch_to_fill(gated) -> None:
    batcher = Batcher([gated], BatchPolicy(max_batch=3, max_delay=30))
    results = await asyncio.gather(*(ask(batcher, colour(i)) for i in range(3)))
    assert [result.batch_size for result in results] == [3, 3, 3]
    await batcher.close()


async def test_many_callers_get_their_own_answers(gated) -> None:
    batcher = Batcher([gated], BatchPolicy(max_batch=8, max_queue=1000))
    values = [value for value in range(256) if value != 13] * 2

    async def logit(value: int) -> float:
        result = await ask(batcher, colour(value))
        return float(result.outputs["logits"][0])

    found = await asyncio.gather(*(logit(value) for value in values))
    np.testing.assert_allclose(found, np.array(values) / 255 + 0.25, atol=1e-6)
    assert max(size for size, _ in gated.batches) == 8
    await batcher.close()


class Dying:
    """Ends the engine's thread at the next runs, as often as it is told."""

    def __init__(self, runner: "GatedRunner", times: int) -> None:  # noqa: F821
        self.times, self._run = times, runner._run
        runner._run = self

    def __call__(self, inputs, outputs):
        if self.times:
            self.times -= 1
            raise SystemExit("the thread is to end")
        return self._run(inputs, outputs)


async def test_a_thread_that_ends_fails_its_batch_and_starts_again(gated) -> None:
    lives: list[bool] = []
    batcher = Batcher([gated], on_alive=lives.append)
    Dying(gated, times=2)
    for expected in ([False], [False, True, False]):
        with pytest.raises(EngineError):
            await ask(batcher, colour(200))
        await until(lambda wanted=expected: lives[: len(wanted)] == wanted)
    # This one waits for the thread.
    assert (await ask(batcher, colour(200))).batch_size == 1
    assert lives == [False, True, False, True]
    await batcher.close()


async def test_a_thread_that_has_ended_does_not_hold_up_the_close(gated) -> None:
    lives: list[bool] = []
    batcher = Batcher([gated], on_alive=lives.append)
    batcher._lanes[0].pause = LIMIT_SECONDS
    Dying(gated, times=1)
    with pytest.raises(EngineError):
        await ask(batcher, colour(200))
    await until(lambda: lives == [False])
    waiting = asyncio.ensure_future(ask(batcher, colour(200)))
    await until(lambda: batcher.waiting == 1)
    await batcher.close()
    assert waiting.result().batch_size == 1


def test_a_run_that_ends_after_the_loop_was_given_up_harms_nobody(gated) -> None:
    async def hang() -> Batcher:
        batcher = Batcher([gated])
        gated.gate.clear()
        asking = asyncio.ensure_future(ask(batcher, colour(200)))
        await until(lambda: gated.entered.acquire(blocking=False))
        asking.cancel()
        return batcher

    batcher = asyncio.run(hang())
    # What the thread raised would fail this test: warnings are errors.
    gated.gate.set()
    with batcher._changed:
        batcher._closing = True
        batcher._changed.notify_all()
    (lane,) = batcher._lanes
    assert lane.join(LIMIT_SECONDS)
    assert gated.pictures == [200]
