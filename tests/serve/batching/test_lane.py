"""A lane by itself: it runs what it takes, and hands over results, errors and its end."""

import asyncio
import math
from queue import SimpleQueue

import numpy as np
import pytest

from foveate_runtime.cores import ANY_CORE
from foveate_serve.batching.lane import Lane
from foveate_serve.batching.queueing import Item
from foveate_serve.errors import EngineError


class Owner:
    """What a lane takes from and hands over to."""

    def __init__(self) -> None:
        self.batches: SimpleQueue = SimpleQueue()
        self.runs: list = []
        self.failed: list = []
        self.ended: list[bool] = []

    def lane(self, runner: object) -> Lane:
        return Lane(
            3,
            runner,
            ANY_CORE,
            max_batch=4,
            take=lambda lane: self.batches.get(),
            share_cores=lambda lane: False,
            on_run=lambda *run: self.runs.append(run),
            on_failed=lambda *failure: self.failed.append(failure),
            on_ended=lambda lane, failed: self.ended.append(failed),
        )


def item(*reds: int) -> Item:
    images = np.zeros((len(reds), 8, 8, 3), dtype=np.uint8)
    images[..., 0] = np.array(reds)[:, None, None]
    return Item(
        images=images,
        class_ids=np.zeros((len(reds), 0), dtype=np.int64),
        outputs=("logits",),
        deadline=None,
        future=asyncio.Future(),
    )


@pytest.fixture
def owner() -> Owner:
    return Owner()


async def test_each_item_gets_its_rows_of_the_batch(owner: Owner, gated: object) -> None:
    lane = owner.lane(gated)
    lane.run_batch([item(50), item(100, 150), item(200)])
    ((_, shares, run),) = owner.runs
    assert (run.size, run.lane) == (4, 3)
    assert [share.row for share in shares] == [0, 1, 3]
    assert [share.batch_size for share in shares] == [4, 4, 4]
    found = [share.outputs["logits"][:, 0].tolist() for share in shares]
    expected = [[50 / 255 + 0.25], [100 / 255 + 0.25, 150 / 255 + 0.25], [200 / 255 + 0.25]]
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have, want, atol=1e-6)
    assert not lane.busy


async def test_a_bad_picture_fails_alone(owner: Owner, gated: object) -> None:
    bad = item(13)
    owner.lane(gated).run_batch([item(50), bad, item(100)])
    assert [batch for batch, _, _ in owner.runs] != []
    assert len(owner.runs) == 2
    ((failed, error),) = owner.failed
    assert failed is bad
    assert isinstance(error, EngineError)


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_a_picture_whose_logits_are_no_numbers_fails_alone(
    owner: Owner, gated: object, value: float
) -> None:
    run = gated.run

    def damaged(inputs: dict, outputs: object, **options: object) -> dict:
        results = run(inputs, outputs, **options)
        results["logits"][inputs["image"][:, 0, 0, 0] == 66, 1] = value
        return results

    gated.run = damaged
    bad = item(66)
    owner.lane(gated).run_batch([item(50), bad, item(100)])
    assert len(owner.runs) == 2
    ((failed, error),) = owner.failed
    assert failed is bad
    assert isinstance(error, EngineError)


async def test_the_thread_runs_until_there_is_nothing_to_take(owner: Owner, gated: object) -> None:
    lane = owner.lane(gated)
    for batch in ([item(50)], [], [item(100)], None):
        owner.batches.put(batch)
    lane.start()
    assert lane.join(60)
    assert len(owner.runs) == 2
    assert owner.ended == [False]


async def test_a_thread_that_an_error_ends_fails_its_batch_and_says_so(
    owner: Owner, gated: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object, **__: object) -> None:
        raise SystemExit("the thread is to end")

    monkeypatch.setattr(gated, "run", end)
    lane = owner.lane(gated)
    owner.batches.put([item(50), item(100)])
    lane.start()
    assert lane.join(60)
    assert [type(error) for _, error in owner.failed] == [EngineError] * 2
    assert owner.ended == [True]
    assert not lane.busy
