"""The queue: who is let in, who comes first, and who is gone."""

import asyncio

import numpy as np
import pytest

from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.batching.queueing import Item, Queue

PLAIN = ("logits",)
WITH_CAM = ("logits", "cam.cam")
SINGLE = BatchPolicy(max_batch=4, max_queue=6)
RANKED = BatchPolicy(max_batch=4, max_queue=6, priority_queues=(2, 5, 3))


def put(queue: Queue, level: int = 0, pictures: int = 1, **item: object) -> Item:
    made = Item(
        images=np.zeros((pictures, 2, 2, 3), dtype=np.uint8),
        class_ids=np.zeros((pictures, 0), dtype=np.int64),
        **{"outputs": PLAIN, "deadline": None, "future": asyncio.Future(), **item},
    )
    queue.put(queue.reserve(level, pictures), made)
    return made


async def test_a_batch_takes_the_highest_level_first_and_each_in_its_order() -> None:
    queue = Queue(3)
    low, high, middle, other = (put(queue, level) for level in (2, 0, 1, 0))
    assert list(queue) == [high, other, middle, low]
    assert queue.take(BatchPolicy(max_batch=3), 3) == [high, other, middle]
    assert list(queue) == [low]


async def test_a_batch_wants_the_outputs_of_its_first_and_leaves_the_others_in_place() -> None:
    queue = Queue(1)
    items = [put(queue, outputs=outputs) for outputs in (WITH_CAM, PLAIN, WITH_CAM, PLAIN)]
    assert queue.take(SINGLE, 4) == [items[0], items[2]]
    assert queue.take(SINGLE, 4) == [items[1], items[3]]
    assert queue.waiting == 0


@pytest.mark.parametrize(
    ("waiting", "sizes"), [(1, [1]), (3, [2, 1]), (5, [4, 1]), (7, [4, 2, 1]), (8, [4, 4])]
)
async def test_a_batch_has_the_largest_preferred_size_that_is_filled(
    waiting: int, sizes: list[int]
) -> None:
    policy, queue = BatchPolicy(max_batch=6, preferred_sizes=(2, 4)), Queue(1)
    for _ in range(waiting):
        put(queue)
    assert [len(queue.take(policy, 6)) for _ in sizes] == sizes


async def test_pictures_that_belong_together_stay_together() -> None:
    queue = Queue(1)
    items = [put(queue, pictures=pictures) for pictures in (3, 2, 1, 9)]
    assert queue.waiting == 15
    assert queue.take(SINGLE, 4) == [items[0]]
    assert queue.take(SINGLE, 4) == [items[1], items[2]]
    assert queue.waiting == 9
    assert queue.take(SINGLE, 4) == [items[3]]
    assert queue.waiting == 0


async def test_a_preferred_size_is_kept_to_with_pictures_that_belong_together() -> None:
    policy, queue = BatchPolicy(max_batch=6, preferred_sizes=(2, 4)), Queue(1)
    items = [put(queue, pictures=pictures) for pictures in (2, 1, 2)]
    assert queue.take(policy, 6) == items[:2]
    assert queue.take(policy, 6) == items[2:]


async def test_what_belongs_together_is_dropped_together() -> None:
    queue = Queue(1)
    gone, late, left = (put(queue, pictures=2, deadline=deadline) for deadline in (None, 1.0, 3.0))
    gone.future.cancel()
    assert queue.drop_expired(2.0) == [late]
    assert list(queue) == [left]
    assert queue.waiting == 2


async def test_places_count_like_pictures_until_they_are_given_back() -> None:
    queue = Queue(1)
    reservation = queue.reserve(0, 5)
    assert (queue.waiting, queue.committed) == (0, 5)
    assert queue.exceeds(SINGLE, 0, 2)
    assert not queue.exceeds(SINGLE, 0, 1)
    queue.release(reservation)
    assert queue.committed == 0
    # More than the bound are let in where nothing waits.
    assert not queue.exceeds(SINGLE, 0, 7)
    queue.release(reservation)
    assert queue.committed == 0


async def test_an_item_takes_one_of_the_places() -> None:
    queue = Queue(1)
    reservation = queue.reserve(0, 3)
    queue.put(reservation, put(Queue(1)))
    assert (reservation.left, queue.waiting, queue.committed) == (2, 1, 3)


async def test_a_level_is_bounded_by_itself_and_by_those_above() -> None:
    queue = Queue(3)
    for _ in range(3):
        put(queue, 2)
    # Its own bound; what waits below counts for nobody above.
    assert [queue.exceeds(RANKED, level, 1) for level in range(3)] == [False, False, True]
    for _ in range(4):
        put(queue, 1)
    assert [queue.exceeds(RANKED, 1, pictures) for pictures in (1, 2)] == [False, True]
    for _ in range(2):
        put(queue, 0)
    # Six wait at the two levels above, as many as may in all.
    assert [queue.ahead(level) for level in range(3)] == [2, 6, 9]
    assert queue.exceeds(RANKED, 1, 1)
    assert queue.full(RANKED)


async def test_what_was_cancelled_goes_and_what_is_late_is_told() -> None:
    queue = Queue(2)
    kept = put(queue, 1, deadline=20.0)
    late = put(queue, 0, deadline=10.0)
    put(queue, 0).future.cancel()
    put(queue, 1, deadline=5.0).future.cancel()
    assert queue.drop_expired(now=10.0) == [late]
    assert list(queue) == [kept]


async def test_the_oldest_is_that_of_any_level() -> None:
    queue = Queue(2)
    put(queue, 0).arrival = 3.0
    put(queue, 1).arrival = 2.0
    assert queue.oldest() == 2.0
