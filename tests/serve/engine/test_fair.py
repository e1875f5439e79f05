"""Threads are shared by the time that they were used, and nothing waits for a cancelled call."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace

import pytest
import pytest_asyncio

from foveate_serve.engine import fair
from foveate_serve.engine.fair import FairThreads
from foveate_serve.log_context import CLIENT

from ...waiting import LIMIT_SECONDS


@pytest_asyncio.fixture
async def threads() -> AsyncIterator[FairThreads]:
    threads = FairThreads(1, name="test-fair")
    yield threads
    threads.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-fair")]


class Gate:
    """Work that runs until `open`, and the order in which users' work began."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.order: list[str] = []

    def hold(self) -> None:
        assert self._event.wait(LIMIT_SECONDS)

    def open(self) -> None:
        self._event.set()

    def note(self, user: str) -> None:
        self.order.append(user)


async def flooded(threads: FairThreads, gate: Gate, calls: list[str]) -> list[asyncio.Task[None]]:
    """Hold the thread, and let the calls wait in their order."""
    tasks = [asyncio.create_task(threads.run("first", gate.hold)) for _ in range(2)]
    await asyncio.sleep(0)
    for user in calls:
        tasks.append(asyncio.create_task(threads.run(user, lambda user=user: gate.note(user))))
        await asyncio.sleep(0)
    return tasks


async def test_a_flood_does_not_hold_up_another_user(threads: FairThreads) -> None:
    gate = Gate()
    tasks = await flooded(threads, gate, ["flood"] * 50 + ["lone"] + ["flood"] * 50)
    gate.open()
    await asyncio.gather(*tasks)
    assert Counter(gate.order) == {"flood": 100, "lone": 1}
    # At most the piece of work that runs and the one that is ready to come before it.
    assert gate.order.index("lone") <= 2


async def test_the_connections_of_a_user_take_turns(threads: FairThreads) -> None:
    gate = Gate()
    tasks = await flooded(threads, gate, [])
    for client in ["flood"] * 50 + ["lone"]:
        CLIENT.set(lambda client=client: client)
        tasks.append(asyncio.create_task(threads.run("model", partial(gate.note, client))))
        await asyncio.sleep(0)
    gate.open()
    await asyncio.gather(*tasks)
    assert Counter(gate.order) == {"flood": 50, "lone": 1}
    assert gate.order.index("lone") <= 2


async def test_users_share_the_time_and_not_the_number(
    threads: FairThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    begin = threading.Event()
    clock = 0

    def work(user: str, seconds: int) -> None:
        nonlocal clock
        assert begin.wait(LIMIT_SECONDS)
        clock += seconds
        done.append(user)

    monkeypatch.setattr(fair, "time", SimpleNamespace(perf_counter=lambda: clock))
    calls = [("long", 10)] * 20 + [("short", 1)] * 200
    tasks = [
        asyncio.create_task(threads.run(user, partial(work, user, seconds)))
        for user, seconds in calls
    ]
    await asyncio.sleep(0)
    begin.set()
    await asyncio.gather(*tasks)
    # While both wait, ten short pieces are done for each long one; by number it would be one.
    half = done[: done.index("long") + 1 + 110]
    assert half.count("short") >= 9 * half.count("long")


async def test_work_that_was_cancelled_while_it_waited_never_runs(threads: FairThreads) -> None:
    gate = Gate()
    tasks = await flooded(threads, gate, ["a", "b", "c", "b"])
    for task in (tasks[3], tasks[4]):
        task.cancel()
    await asyncio.wait((tasks[3], tasks[4]))
    gate.open()
    await asyncio.gather(*tasks[:3], tasks[5])
    assert sorted(gate.order) == ["a", "b"]


async def test_a_turn_given_to_a_cancelled_call_goes_to_the_next(threads: FairThreads) -> None:
    gate = Gate()
    tasks = await flooded(threads, gate, ["a", "b"])
    turn = threads._waiting["a"][""][0]
    gate.open()
    # Called before the call that has been given its turn goes on.
    turn.add_done_callback(lambda _: tasks[2].cancel())
    await asyncio.gather(*tasks[:2], tasks[3])
    assert "b" in gate.order
    assert await threads.run("c", lambda: 7) == 7
    assert not threads._waiting


async def test_errors_reach_their_caller_and_free_the_thread(threads: FairThreads) -> None:
    def fail() -> None:
        raise ValueError("this one")

    results = await asyncio.gather(
        *(threads.run("a", fail) for _ in range(9)), return_exceptions=True
    )
    assert [str(result) for result in results] == ["this one"] * 9
    assert await threads.run("a", lambda: 7) == 7


async def test_cancelling_work_that_runs_gives_its_thread_back_only_when_it_ends(
    threads: FairThreads,
) -> None:
    gate = Gate()
    tasks = await flooded(threads, gate, [])
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    later = asyncio.create_task(threads.run("b", lambda: gate.note("b")))
    await asyncio.sleep(0)
    assert not gate.order
    gate.open()
    await later
    assert gate.order == ["b"]
