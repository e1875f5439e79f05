"""When a lane starts a batch, and how large it is: rules without threads."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest

from foveate_runtime.cores import ANY_CORE, Cores
from foveate_serve.batching.pacing import Pace, Pacing, slowest
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.batching.queueing import Item, Queue

LIGHT = Pace(light=True)
INLINE = Pace(inline_pictures=3)


@dataclass(eq=False)
class Lane:
    busy: bool = False
    cores: Cores = ANY_CORE
    siblings: list["Lane"] = field(default_factory=list)


def lanes_of_one_runner(count: int) -> list[Lane]:
    lanes = [Lane() for _ in range(count)]
    for lane in lanes:
        lane.siblings = lanes
    return lanes


def queue_of(*sizes: int, outputs: tuple[str, ...] = ("logits",)) -> Queue:
    queue = Queue(1)
    for size in sizes:
        item = Item(
            images=np.zeros((size, 2, 2, 3), dtype=np.uint8),
            class_ids=np.zeros((size, 0), dtype=np.int64),
            outputs=outputs,
            deadline=None,
            future=asyncio.Future(),
        )
        queue.put(queue.reserve(0, size), item)
    return queue


def test_the_pace_of_several_instances_is_that_of_the_slowest() -> None:
    assert slowest([INLINE, Pace(light=True, inline_pictures=5)]) == INLINE
    assert slowest([LIGHT]) == LIGHT


def test_a_pace_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        INLINE.inline_pictures = 9


@pytest.mark.parametrize(("pace", "defers"), [(Pace(), False), (LIGHT, True), (INLINE, True)])
def test_light_pictures_wait_while_a_lane_is_busy(pace: Pace, defers: bool) -> None:
    lanes = lanes_of_one_runner(2)
    pacing = Pacing(BatchPolicy(max_batch=4), pace, lanes)
    assert not pacing.defers(1)
    lanes[1].busy = True
    assert pacing.defers(1) is defers
    # A full batch does not.
    assert not pacing.defers(4)
    lanes[1].busy, pacing.gathering = False, True
    assert pacing.defers(1) is defers


async def test_a_short_batch_of_logits_runs_inline_while_every_lane_is_idle() -> None:
    lanes = lanes_of_one_runner(1)
    pacing = Pacing(BatchPolicy(), INLINE, lanes)
    assert pacing.runs_inline(queue_of(1, 1, 1))
    assert not pacing.runs_inline(queue_of(1, 1, 1, 1))
    assert not pacing.runs_inline(queue_of(2))
    assert not pacing.runs_inline(queue_of(1, outputs=("logits", "cam.cam")))
    lanes[0].busy = True
    assert not pacing.runs_inline(queue_of(1))


async def test_another_policy_changes_what_runs_inline() -> None:
    pacing = Pacing(BatchPolicy(), INLINE, lanes_of_one_runner(1))
    pacing.apply(BatchPolicy(max_delay=0.1))
    assert not pacing.runs_inline(queue_of(1))
    pacing.apply(BatchPolicy())
    assert pacing.runs_inline(queue_of(1))


async def test_a_delay_ends_with_the_oldest_or_with_a_full_batch() -> None:
    pacing = Pacing(BatchPolicy(max_batch=2, max_delay=5.0), Pace(), lanes_of_one_runner(1))
    queue = queue_of(1)
    assert pacing.delay(queue, queue.oldest() + 3.0) == pytest.approx(2.0)
    assert pacing.delay(queue_of(1, 1), 0.0) == 0.0
    assert pacing.delay(queue_of(), 0.0) == 0.0


def test_idle_lanes_share_the_queue_and_a_light_one_takes_all() -> None:
    lanes = lanes_of_one_runner(3)
    assert Pacing(BatchPolicy(max_batch=9), Pace(), lanes).share(lanes[0], 6) == 2
    assert Pacing(BatchPolicy(max_batch=9), LIGHT, lanes).share(lanes[0], 6) == 6


def test_a_run_leaves_cores_to_others_where_there_are_any_at_work() -> None:
    lanes = lanes_of_one_runner(2)
    pacing = Pacing(BatchPolicy(), Pace(), lanes)
    lanes[0].busy = True
    assert not pacing.shares_cores(lanes[0], 0)
    assert pacing.shares_cores(lanes[0], 1)
    lanes[1].busy = True
    assert pacing.shares_cores(lanes[0], 0)
    alone = lanes_of_one_runner(1)
    assert not Pacing(BatchPolicy(), LIGHT, alone).shares_cores(alone[0], 5)


def test_the_time_of_a_picture_follows_the_newest_runs() -> None:
    pacing = Pacing(BatchPolicy(), Pace(), lanes_of_one_runner(2))
    assert pacing.drain_seconds(10) == 0.0
    pacing.record(1.0)
    assert pacing.drain_seconds(10) == 5.0
    pacing.record(2.0)
    assert pacing.picture_seconds == pytest.approx(1.2)
