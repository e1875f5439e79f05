"""Deadlines share timers, are never early, and leave nothing behind."""

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest

from foveate_serve import deadlines as module
from foveate_serve.deadlines import Deadlines, Timer, Within

from ....waiting import until


def in_seconds(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


@pytest.fixture
def deadlines() -> Deadlines:
    return Deadlines()


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is due soon share timers as well."""
    monkeypatch.setattr(module, "_EXACT_SECONDS", 0.0)


@pytest.fixture(params=["exact", "shared"])
def both(request: pytest.FixtureRequest) -> None:
    if request.param == "shared":
        request.getfixturevalue("ticks")


class Callback:
    """Notes that it was called; nobody is to keep it longer than needed."""

    def __init__(self) -> None:
        self.called = 0

    def __call__(self) -> None:
        self.called += 1


async def past(deadlines: Deadlines, when: float) -> None:
    """Wait until a deadline after `when` has come, and so everything before it."""
    after = Callback()
    deadlines.at(when + 0.01, after)
    await until(lambda: after.called == 1)


async def test_nothing_comes_early_and_all_comes(both: None, deadlines: Deadlines) -> None:
    late: list[float] = []
    loop = asyncio.get_running_loop()

    def note(when: float) -> Callable[[], None]:
        return lambda: late.append(loop.time() - when)

    start = in_seconds(0.01)
    for number in range(50):
        when = start + number / 500
        deadlines.at(when, note(when))
    await until(lambda: len(late) == 50)
    # The clock of an event loop is that fine.
    assert min(late) > -1e-6
    assert not deadlines._ticks


async def test_a_time_that_is_over_comes_at_once(both: None, deadlines: Deadlines) -> None:
    called: list[int] = []
    deadlines.at(in_seconds(-1), lambda: called.append(1))
    await until(lambda: called == [1])


async def test_those_who_are_due_together_share_a_timer(deadlines: Deadlines) -> None:
    when = in_seconds(100)
    for _ in range(100):
        deadlines.at(when, Callback())
    assert len(deadlines._ticks) == 1


async def test_what_was_cancelled_is_kept_no_longer(both: None, deadlines: Deadlines) -> None:
    callback = Callback()
    kept = weakref.ref(callback)
    for seconds in (0.3, 0.3, 60):
        deadlines.at(in_seconds(seconds), callback).cancel()
    del callback
    assert kept() is None


async def test_what_was_cancelled_does_not_come(both: None, deadlines: Deadlines) -> None:
    called: list[int] = []
    when = in_seconds(0.03)
    first = deadlines.at(when, lambda: called.append(1))
    deadlines.at(when, lambda: called.append(2))
    third = deadlines.at(when, lambda: called.append(3))
    first.cancel()
    third.cancel()
    third.cancel()
    await until(lambda: bool(called))
    await past(deadlines, when)
    assert called == [2]
    first.cancel()


async def test_what_another_has_cancelled_does_not_come_either(
    both: None, deadlines: Deadlines
) -> None:
    called: list[int] = []
    when = in_seconds(0.02)
    timers: list[Timer] = []

    def cancel_the_others(number: int) -> None:
        called.append(number)
        for other, timer in enumerate(timers):
            if other != number:
                timer.cancel()

    timers += [
        deadlines.at(when, lambda number=number: cancel_the_others(number)) for number in range(5)
    ]
    await until(lambda: bool(called))
    await past(deadlines, when)
    assert len(called) == 1


async def test_deadlines_far_away_leave_nothing_once_they_are_met(deadlines: Deadlines) -> None:
    # Those of a server's calls, an hour away each.
    for number in range(5000):
        deadlines.at(in_seconds(3600 + number / 50), Callback()).cancel()
    assert len(deadlines._ticks) < 1000


async def test_what_is_due_in_ten_thousand_years_may_be_cancelled(deadlines: Deadlines) -> None:
    callback = Callback()
    deadlines.at(in_seconds(99_999_999 * 3600), callback).cancel()
    await asyncio.sleep(0)
    assert callback.called == 0


async def test_a_block_that_is_too_slow_times_out(both: None, deadlines: Deadlines) -> None:
    start = in_seconds(0)
    with pytest.raises(TimeoutError), Within(deadlines, start + 0.03):
        await asyncio.Event().wait()
    assert in_seconds(0) - start > 0.03 - 1e-6
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


@pytest.mark.parametrize("seconds", [0.02, 60.0])
async def test_a_block_that_is_in_time_leaves_nothing_behind(
    both: None, deadlines: Deadlines, seconds: float
) -> None:
    within = Within(deadlines, in_seconds(seconds))
    kept = weakref.ref(within)
    with within:
        await asyncio.sleep(0)
    del within
    gc.collect()
    assert kept() is None
    await past(deadlines, in_seconds(0.02))


async def test_a_block_that_fails_leaves_nothing_behind(both: None, deadlines: Deadlines) -> None:
    with pytest.raises(KeyError), Within(deadlines, in_seconds(0.02)):
        raise KeyError
    await past(deadlines, in_seconds(0.02))


async def test_no_deadline_never_comes(deadlines: Deadlines) -> None:
    with Within(deadlines, None):
        await asyncio.sleep(0.01)  # long enough for a deadline of no seconds
    assert not deadlines._ticks


async def test_a_time_that_is_over_ends_a_block_where_it_waits(deadlines: Deadlines) -> None:
    with pytest.raises(TimeoutError), Within(deadlines, in_seconds(-1)):
        await asyncio.Event().wait()
    with Within(deadlines, in_seconds(-1)):
        pass  # It does not wait.
    await past(deadlines, in_seconds(0))


async def test_what_fails_because_it_was_ended_says_so_itself(
    both: None, deadlines: Deadlines
) -> None:
    async def clean_up() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise KeyError("while it was ended") from None

    with pytest.raises(KeyError, match="while it was ended"), Within(deadlines, in_seconds(0.02)):
        await clean_up()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_timeout_from_within_is_passed_on(deadlines: Deadlines) -> None:
    with pytest.raises(TimeoutError, match="mine"), Within(deadlines, in_seconds(60)):
        raise TimeoutError("mine")


async def slow(deadlines: Deadlines, when: float | None, started: asyncio.Event) -> None:
    with Within(deadlines, when):
        started.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("seconds", [60.0, None])
async def test_a_cancel_from_outside_is_no_timeout(
    deadlines: Deadlines, seconds: float | None
) -> None:
    started = asyncio.Event()
    when = None if seconds is None else in_seconds(seconds)
    task = asyncio.create_task(slow(deadlines, when, started))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_cancel_from_outside_at_the_same_time_is_not_swallowed(
    ticks: None, deadlines: Deadlines
) -> None:
    started = asyncio.Event()
    when = in_seconds(0.03)
    task = asyncio.create_task(slow(deadlines, when, started))
    await started.wait()
    # On the same tick, and so on the same round of the event loop.
    deadlines.at(when, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_an_inner_block_times_out_alone(both: None, deadlines: Deadlines) -> None:
    with Within(deadlines, in_seconds(60)):
        with pytest.raises(TimeoutError), Within(deadlines, in_seconds(0.02)):
            await asyncio.Event().wait()
        await asyncio.sleep(0)


async def test_an_outer_block_times_out_through_an_inner_one(
    both: None, deadlines: Deadlines
) -> None:
    seen: list[type[BaseException]] = []

    async def inner() -> None:
        try:
            with Within(deadlines, in_seconds(60)):
                await asyncio.Event().wait()
        except BaseException as error:
            seen.append(type(error))
            raise

    with pytest.raises(TimeoutError), Within(deadlines, in_seconds(0.02)):
        await inner()
    assert seen == [asyncio.CancelledError]


async def test_blocks_that_are_due_together_both_time_out(
    ticks: None, deadlines: Deadlines
) -> None:
    when = in_seconds(0.02)
    with pytest.raises(TimeoutError), Within(deadlines, when), Within(deadlines, when):
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_block_within_asyncios_own_timeout_leaves_it_its_error(
    deadlines: Deadlines,
) -> None:
    outer = asyncio.timeout(0.02)
    with pytest.raises(TimeoutError):
        async with outer:
            await slow(deadlines, in_seconds(60), asyncio.Event())
    assert outer.expired()


async def test_a_deadline_is_for_a_task(deadlines: Deadlines) -> None:
    failed: list[RuntimeError] = []
    done = asyncio.Event()

    def outside() -> None:
        try:
            with Within(deadlines, in_seconds(60)):
                pass
        except RuntimeError as error:
            failed.append(error)
        done.set()

    asyncio.get_running_loop().call_soon(outside)
    await done.wait()
    assert len(failed) == 1
