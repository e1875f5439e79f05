"""Dynamic batching: requests that wait together run together."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count

import numpy as np
from numpy.typing import NDArray

from foveate_serve.backends.base import Array, BackendError, Runner
from foveate_serve.bundle.manifest import CAM_PREFIX, CLASS_IDS_INPUT, IMAGE_INPUT
from foveate_serve.errors import DeadlineError, EngineError, OverloadedError

logger = logging.getLogger(__name__)

_BEST_CLASS = -1
"""Fills up the class ids of a batch: valid for every model, and its maps are cut off again."""


_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30.0

_numbers = count(1)


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """How batches form.

    A batch holds at most `max_batch` pictures. An idle engine starts at once on
    whatever waits, and while it runs the next batch gathers; `max_delay` makes
    it wait that many seconds from the arrival of the oldest picture for a
    batch to fill. More than `max_queue` waiting pictures are refused.
    """

    max_batch: int = 8
    max_delay: float = 0.0
    max_queue: int = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Batched:
    """One picture's share of a batch.

    `outputs` are the outputs wanted without the batch's dimension;
    `queue_seconds` passed before the batch ran and `run_seconds` while it ran;
    `batch` is the number of the batch among those of the process.
    """

    outputs: dict[str, Array]
    queue_seconds: float
    run_seconds: float
    batch: int
    batch_size: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Item:
    image: NDArray[np.uint8]
    class_ids: NDArray[np.int64]
    outputs: tuple[str, ...]
    deadline: float | None
    future: asyncio.Future[Batched]
    arrival: float = field(default_factory=time.monotonic)


class Batcher:
    """Runs pictures through one runner, on a thread of its own.

    The thread takes the next batch by itself, so that the engine never waits for
    the event loop. A batch holds pictures that want the same outputs, led by
    the one that has waited longest. `ran` is called on the event loop with the
    size and the seconds of every run that did not fail.

    A thread that ends unasked is started again, after a pause that doubles from
    one time to the next until a run succeeds; `alive` is called on the event
    loop with False when it has ended, and with True when it runs again. Made
    within a running event loop.
    """

    def __init__(
        self,
        runner: Runner,
        policy: BatchPolicy | None = None,
        *,
        ran: Callable[[int, float], None] | None = None,
        alive: Callable[[bool], None] | None = None,
    ) -> None:
        self._runner = runner
        self._ran = ran
        self._alive = alive
        self._pause = _FIRST_PAUSE
        self._revival: asyncio.TimerHandle | None = None
        self.policy = policy or BatchPolicy()
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._stopped = asyncio.Event()
        self._batch_seconds = 0.0
        self._buffer = np.empty((self.policy.max_batch, *runner.image_shape), dtype=np.uint8)
        self._thread = self._start()

    @property
    def waiting(self) -> int:
        """How many pictures wait for a batch."""
        return len(self._queue)

    async def submit(
        self,
        image: NDArray[np.uint8],
        *,
        outputs: Sequence[str],
        class_ids: Sequence[int] = (),
        deadline: float | None = None,
    ) -> Batched:
        """Run one picture, uint8 [height, width, channels], and return the outputs wanted.

        `class_ids` are those that the maps among `outputs` explain, `deadline`
        a time of `time.monotonic`. Cancelling the call, or passing the
        deadline, takes a waiting picture out of the queue. Raises
        OverloadedError where the queue is full, DeadlineError, and EngineError.
        """
        item = _Item(
            image=image,
            class_ids=np.asarray(class_ids, dtype=np.int64),
            outputs=tuple(outputs),
            deadline=deadline,
            future=self._loop.create_future(),
        )
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            if len(self._queue) >= self.policy.max_queue:
                self._drop_dead()
            if len(self._queue) >= self.policy.max_queue:
                raise self._overloaded()
            self._queue.append(item)
            self._changed.notify()
        return await item.future

    async def close(self) -> None:
        """Run what waits, then stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._revival is not None:
            self._revival.cancel()
            self._revive()
        await self._stopped.wait()
        self._thread.join()

    def _overloaded(self) -> OverloadedError:
        batches = -(-len(self._queue) // self.policy.max_batch)
        return OverloadedError(
            "QUEUE_FULL",
            f"{len(self._queue)} pictures wait for this model, which is the limit",
            retry_delay=timedelta(seconds=max(0.01, batches * self._batch_seconds)),
            metadata={"limit": self.policy.max_queue},
        )

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="foveate-engine", daemon=True)
        thread.start()
        return thread

    def _died(self) -> None:
        logger.error("the engine's thread starts again in %.1f s", self._pause)
        if self._alive is not None:
            self._alive(False)
        self._revival = self._loop.call_later(0 if self._closing else self._pause, self._revive)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _revive(self) -> None:
        self._revival = None
        self._thread = self._start()
        if self._alive is not None:
            self._alive(True)

    # Below: on the engine's thread, but for _drop_dead, which holds the lock.

    def _work(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                if batch:
                    self._run(batch)
        except BaseException:
            logger.exception("the engine's thread ended")
            self._loop.call_soon_threadsafe(self._died)
        else:
            self._loop.call_soon_threadsafe(self._stopped.set)

    def _next_batch(self) -> list[_Item] | None:
        """Wait for a batch. It may be empty; None means that there will be no other."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if not self._queue:
                return None
            full_at = self._queue[0].arrival + self.policy.max_delay
            while (
                not self._closing
                and len(self._queue) < self.policy.max_batch
                and (left := full_at - time.monotonic()) > 0
            ):
                self._changed.wait(left)
            self._drop_dead()
            return self._take()

    def _drop_dead(self) -> None:
        """Take out of the queue what was cancelled or is too late."""
        now = time.monotonic()
        alive: deque[_Item] = deque()
        for item in self._queue:
            if item.future.done():
                continue
            if item.deadline is not None and item.deadline <= now:
                self._loop.call_soon_threadsafe(_fail, item, DeadlineError())
            else:
                alive.append(item)
        self._queue = alive

    def _take(self) -> list[_Item]:
        batch: list[_Item] = []
        others: deque[_Item] = deque()
        for item in self._queue:
            fits = len(batch) < self.policy.max_batch
            if fits and (not batch or item.outputs == batch[0].outputs):
                batch.append(item)
            else:
                others.append(item)
        self._queue = others
        return batch

    def _run(self, batch: list[_Item]) -> None:
        started = time.monotonic()
        try:
            results = self._runner.run(self._assemble(batch), batch[0].outputs)
        except BackendError:
            if len(batch) > 1:
                # One bad picture must not fail the others.
                for item in batch:
                    self._run([item])
            else:
                logger.exception("the engine failed")
                self._loop.call_soon_threadsafe(_fail, batch[0], EngineError())
            return
        except Exception as error:  # noqa: BLE001 - those who wait get it
            for item in batch:
                self._loop.call_soon_threadsafe(_fail, item, error)
            return
        except BaseException:
            # What ends the thread must leave nobody waiting.
            for item in batch:
                self._loop.call_soon_threadsafe(_fail, item, EngineError())
            raise
        seconds = time.monotonic() - started
        self._pause = _FIRST_PAUSE
        self._batch_seconds = seconds
        number = next(_numbers)
        shares = [
            Batched(
                outputs=_share(results, index, len(item.class_ids)),
                queue_seconds=started - item.arrival,
                run_seconds=seconds,
                batch=number,
                batch_size=len(batch),
            )
            for index, item in enumerate(batch)
        ]
        self._loop.call_soon_threadsafe(self._deliver, batch, shares)

    def _assemble(self, batch: list[_Item]) -> dict[str, Array]:
        if len(batch) == 1:
            inputs: dict[str, Array] = {IMAGE_INPUT: batch[0].image[np.newaxis]}
        else:
            for row, item in zip(self._buffer, batch, strict=False):
                row[:] = item.image
            inputs = {IMAGE_INPUT: self._buffer[: len(batch)]}
        if any(name.startswith(CAM_PREFIX) for name in batch[0].outputs):
            longest = max(len(item.class_ids) for item in batch)
            class_ids = np.full((len(batch), longest), _BEST_CLASS, dtype=np.int64)
            for index, item in enumerate(batch):
                class_ids[index, : len(item.class_ids)] = item.class_ids
            inputs[CLASS_IDS_INPUT] = class_ids
        return inputs

    # On the event loop, where a caller may have gone in the meantime.

    def _deliver(self, batch: list[_Item], shares: list[Batched]) -> None:
        if self._ran is not None:
            self._ran(len(batch), shares[0].run_seconds)
        for item, share in zip(batch, shares, strict=True):
            if not item.future.done():
                item.future.set_result(share)


def _share(results: dict[str, Array], index: int, classes: int) -> dict[str, Array]:
    return {
        name: result[index, :classes] if name.startswith(CAM_PREFIX) else result[index]
        for name, result in results.items()
    }


def _fail(item: _Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)
