"""Dynamic batching: one queue a model, and a thread for each lane of its runners."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import count

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import Array, Runner
from foveate_runtime.bundle.manifest import LOGITS_OUTPUT
from foveate_runtime.cores import ANY_CORE, Cores, pinned
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.batching.queueing import Item, Queue, Reservation
from foveate_serve.batching.ranking import Ranking
from foveate_serve.batching.rows import assemble, rows_of, share_of
from foveate_serve.batching.tuning import Tuner
from foveate_serve.classification import Timing
from foveate_serve.errors import (
    DeadlineError,
    EngineError,
    EngineHungError,
    OverloadedError,
)
from foveate_serve.niceness import ENGINE, raise_niceness
from foveate_serve.observer import BatchRun

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30.0

_NEWEST_SHARE = 0.2
"""The weight of the newest run in the moving average of the run time of a picture."""

_SHORTEST_RETRY = 0.01
_LONGEST_RETRY = 30.0

_numbers = count(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batched:
    """One item's share of a batch.

    Attributes:
        outputs: the outputs asked for, by name, [n, ...] each.
        ranking: the ranking of the whole batch.
        row: the row of the item's first picture in `ranking`.
        queue_seconds: the time in the queue.
        run_seconds: the time of the engine's run.
        batch: the number of the batch, counted in this process.
        batch_size: the number of pictures in the batch.
    """

    outputs: dict[str, Array]
    ranking: Ranking
    row: int
    queue_seconds: float
    run_seconds: float
    batch: int
    batch_size: int


@dataclass(kw_only=True, eq=False)
class _Lane:
    """A lane of a runner, and the thread that runs its batches."""

    number: int
    runner: Runner
    cores: Cores
    buffer: NDArray[np.uint8]
    busy: bool = False
    thread: threading.Thread | None = None
    pause: float = _FIRST_PAUSE
    restart: asyncio.TimerHandle | None = None


class Batcher:
    """Runs pictures through the runners of one model, with a thread for each of their lanes.

    Each thread takes its next batch from the queue itself, so that an engine does
    not wait for the event loop. All pictures of a batch ask for the same outputs.
    The first is the oldest of the highest priority. The idle lanes share the
    queue. Where the runners are light, a batch gathers for as long as each round
    of the event loop brings another picture. A batch that asks for the logits
    alone then runs on the event loop itself, where the runners allow this
    (`Runner.always_inline`, `Runner.inline_pictures`).

    A thread that ends by an error is started again, after a pause that doubles
    until a run succeeds. Made within a running event loop.

    Attributes:
        bounds: the policy given.
        policy: the policy in force. Where there is a latency objective, a Tuner
            changes it, and the log says so under `name`.

    `on_batch` is called on the event loop with every run that succeeded;
    `on_alive` with False when the last thread has ended, and with True when one
    runs again.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        policy: BatchPolicy | None = None,
        *,
        name: str = "a model",
        on_batch: Callable[[BatchRun], None] | None = None,
        on_alive: Callable[[bool], None] | None = None,
    ) -> None:
        self.bounds = policy = policy or BatchPolicy()
        self._name = name
        lanes = [
            (runner, cores)
            for runner, cores in zip(runners, policy.cores, strict=True)
            for _ in range(policy.lanes_of(runner))
        ]
        self._tuner = (
            None if policy.objective is None else Tuner(policy, policy.objective, lanes=len(lanes))
        )
        self.policy = policy if self._tuner is None else self._tuner.policy
        self._on_batch = on_batch
        self._on_alive = on_alive
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._queue = Queue(policy.priorities)
        # Held where items enter and leave the queue. Only the event loop makes and releases
        # reservations.
        self._changed = threading.Condition()
        self._in_flight: set[Item] = set()
        self._hung = False
        self._arrivals = 0
        self._gathering = False
        self._closing = False
        self._stopped = asyncio.Event()
        self._picture_seconds = 0.0
        self._lanes = [
            _Lane(
                number=number,
                runner=runner,
                cores=cores,
                buffer=np.empty((policy.max_batch, *runner.image_shape), dtype=np.uint8),
            )
            for number, (runner, cores) in enumerate(lanes)
        ]
        self._running = 0
        for lane in self._lanes:
            self._start_thread(lane)

    @property
    def waiting(self) -> int:
        """How many pictures are in the queue."""
        return self._queue.waiting

    @property
    def backlog_seconds(self) -> float:
        """The time that the lanes need for the queue and all reservations, by their last runs."""
        return self._drain_seconds(self._queue.committed)

    @property
    def full(self) -> bool:
        """Whether a picture of any priority would be refused."""
        return self._queue.full(self.policy)

    def reserve(
        self, pictures: int = 1, priority: int = 0, deadline: float | None = None
    ) -> Reservation:
        """Reserve places in the queue, for `submit`; the `with` block's end releases the rest.

        So the queue's bound holds before a picture costs anything.

        Args:
            pictures: the number of places.
            priority: from 1, the highest; 0 is the policy's default.
            deadline: a time of `time.monotonic`. A request is also refused where
                the queue ahead of it takes longer than this leaves.

        Raises:
            OverloadedError: the queue is full, or the deadline too short.
        """
        level = self.policy.level(priority)
        if self._queue.exceeds(self.policy, level, pictures):
            with self._changed:
                self._drop_expired()
            if self._queue.exceeds(self.policy, level, pictures):
                raise self._overloaded(level)
        if deadline is not None:
            self._require_time(level, deadline - time.monotonic())
        return self._queue.reserve(level, pictures)

    @property
    def chunk_size(self) -> int:
        """The most pictures that are worth submitting together: what one lane takes."""
        return self.policy.share(
            self.policy.max_batch,
            idle=1,
            lanes=self._lanes_at_work(self._lanes[0].runner),
            picture_seconds=self._picture_seconds,
        )

    async def submit(
        self,
        reservation: Reservation,
        images: NDArray[np.uint8],
        *,
        outputs: Sequence[str],
        class_ids: Sequence[Sequence[int]] = ((),),
        deadline: float | None = None,
    ) -> Batched:
        """Run at most `bounds.max_batch` pictures in one batch, which others may share.

        Cancelling the call removes the pictures from the queue.

        Args:
            reservation: has a place for each picture.
            images: uint8 [n, height, width, channels].
            outputs: the names of the outputs to return.
            class_ids: [n, K], the classes that the maps among `outputs` explain.
            deadline: a time of `time.monotonic`, after which the pictures do not run.

        Returns:
            The outputs, [n, ...] each.

        Raises:
            DeadlineError: the deadline passed in the queue.
            EngineError: the engine failed.
            EngineHungError: a run of the engine does not return.
        """
        item = Item(
            images=images,
            class_ids=np.asarray(class_ids, dtype=np.int64),
            outputs=tuple(outputs),
            deadline=deadline,
            future=self._loop.create_future(),
        )
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            if self._hung:
                raise EngineHungError
            self._queue.put(reservation, item)
            self._arrivals += 1
            if self._gathers and not self._gathering:
                self._gathering = True
                self._loop.call_soon(self._gather, self._arrivals)
            if not self._defers_wakeup:
                self._changed.notify()
        self._in_flight.add(item)
        try:
            batched: Batched = await item.future
        finally:
            self._in_flight.discard(item)
        return batched

    def record_timing(self, timing: Timing) -> None:
        """Give the Tuner, if there is one, the times of a request that was answered."""
        if self._tuner is not None:
            self._tuner.record_timing(timing)
            self._apply_policy(self._tuner.policy)

    def set_hung(self, hung: bool) -> None:
        """Note whether a run hangs; if so, fail every request in the queue or in a batch."""
        self._hung = hung
        if hung:
            for item in list(self._in_flight):
                _fail(item, EngineHungError())

    async def close(self) -> None:
        """Drain the queue, then stop the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for lane in self._lanes:
            if lane.restart is not None:
                lane.restart.cancel()
                self._restart(lane)
        await self._stopped.wait()
        for lane in self._lanes:
            if lane.thread is not None:
                lane.thread.join()

    def _gather(self, arrivals: int) -> None:
        """Start a batch of light pictures, once a round of the event loop has brought no other.

        Handing a run to a thread takes longer than the run, so a batch is worth
        waiting for the pictures that are being read and decoded.
        """
        if arrivals != self._arrivals and self.waiting < self.policy.max_batch:
            self._loop.call_soon(self._gather, self._arrivals)
            return
        with self._changed:
            batches = self._take_batches() if self._runs_inline else []
            self._gathering = False
            if self.waiting and not self._defers_wakeup:
                self._changed.notify()
        # No item enters the queue in the meantime: only this thread puts items in.
        for batch in batches:
            self._run_batch(self._lanes[0], batch)

    def _take_batches(self) -> list[list[Item]]:
        self._drop_expired()
        batches = []
        while self.waiting:
            batches.append(self._queue.take(self.policy))
        return batches

    @property
    def _runs_inline(self) -> bool:
        policy, runner = self.policy, self._lanes[0].runner
        return (
            (runner.always_inline or self.waiting <= runner.inline_pictures)
            and self._lanes[0].cores == ANY_CORE
            and not policy.max_delay
            and not policy.preferred_sizes
            and not any(lane.busy for lane in self._lanes)
            and all(item.pictures == 1 and item.outputs == (LOGITS_OUTPUT,) for item in self._queue)
        )

    def _overloaded(self, level: int) -> OverloadedError:
        ahead = self._queue.ahead(level)
        limit = min(self.policy.bound(level), self.policy.max_queue)
        return OverloadedError(
            "QUEUE_FULL",
            f"{ahead} pictures wait for this model at this priority or above; the limit is {limit}",
            retry_delay=retry_delay(self._drain_seconds(ahead)),
            metadata={"limit": limit},
        )

    def _require_time(self, level: int, seconds: float) -> None:
        # The request's own run does not count: its time is only known once pictures have run.
        wait = self._drain_seconds(self._queue.ahead(level))
        if 0 < seconds < wait:
            raise OverloadedError(
                "DEADLINE_TOO_SHORT",
                f"the queue of this model takes {wait:.2g} s; the limit is the deadline, "
                f"{seconds:.2g} s away",
                retry_delay=retry_delay(wait),
                metadata={"limit": f"{seconds:.3f}"},
            )

    def _drain_seconds(self, pictures: int) -> float:
        return pictures * self._picture_seconds / len(self._lanes)

    def _start_thread(self, lane: _Lane) -> None:
        name = f"foveate-engine-{lane.number}"
        lane.thread = threading.Thread(target=self._run_lane, args=(lane,), name=name, daemon=True)
        self._running += 1
        lane.thread.start()

    def _on_thread_ended(self) -> None:
        self._running -= 1
        if not self._running and all(lane.restart is None for lane in self._lanes):
            self._stopped.set()

    def _on_thread_failed(self, lane: _Lane) -> None:
        logger.error("the engine's thread is restarted in %.1f s", lane.pause)
        self._running -= 1
        if self._on_alive is not None and not self._running:
            self._on_alive(False)
        pause = 0 if self._closing else lane.pause
        lane.restart = self._loop.call_later(pause, self._restart, lane)
        lane.pause = min(2 * lane.pause, _LONGEST_PAUSE)

    def _restart(self, lane: _Lane) -> None:
        lane.restart = None
        first = not self._running
        self._start_thread(lane)
        if self._on_alive is not None and first:
            self._on_alive(True)

    # The methods below run on a lane's thread. The event loop also calls _drop_expired, with
    # the lock held, and _run_batch, for a run inline.

    def _run_lane(self, lane: _Lane) -> None:
        try:
            raise_niceness(ENGINE)
            with pinned(lane.cores):
                while (batch := self._next_batch(lane)) is not None:
                    if batch:
                        self._run_batch(lane, batch)
        except BaseException:
            logger.exception("the engine's thread ended")
            with self._changed:
                # The other lanes take what this one was woken for.
                self._changed.notify()
            self._call_on_loop(self._on_thread_failed, lane)
        else:
            self._call_on_loop(self._on_thread_ended)

    def _call_on_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call a function on the event loop, directly where this is the loop's thread.

        A run that hung may end after the event loop was closed. Its result is
        then dropped.
        """
        if threading.get_ident() == self._loop_thread:
            callback(*arguments)
            return
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _next_batch(self, lane: _Lane) -> list[Item] | None:
        """Wait for a batch, which may be empty. None means that the batcher is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: (self.waiting and not self._defers_wakeup) or self._closing
            )
            if not self.waiting:
                return None
            # Another lane may take the pictures that this one waits for.
            while (
                self.policy.max_delay
                and not self._closing
                and 0 < self.waiting < self.policy.enough
                and (left := self._queue.oldest() + self.policy.max_delay - time.monotonic()) > 0
            ):
                self._changed.wait(left)
            self._drop_expired()
            lanes = self._lanes_at_work(lane.runner)
            idle = sum(not lane.busy for lane in self._lanes_of(lane.runner))
            batch = self._queue.take(
                self.policy,
                idle=min(idle, lanes),
                lanes=lanes,
                picture_seconds=self._picture_seconds,
            )
            lane.busy = bool(batch)
            if self.waiting and not self._defers_wakeup:
                self._changed.notify()
            return batch

    @property
    def _gathers(self) -> bool:
        """Whether runs are so short that waiting for a larger batch pays."""
        runner = self._lanes[0].runner
        return runner.light or runner.inline_pictures > 0

    @property
    def _defers_wakeup(self) -> bool:
        """Whether the queue should grow further before an idle lane is woken.

        A light run takes no longer than waking a thread, and the pictures that
        arrive during it share the next batch.
        """
        if self._gathering and self._lanes[0].runner.always_inline:
            return True
        return (
            self._gathers
            and self.waiting < self.policy.max_batch
            and (self._gathering or any(lane.busy for lane in self._lanes))
        )

    def _drop_expired(self) -> None:
        """Remove from the queue what was cancelled or has passed its deadline."""
        for item in self._queue.drop_expired(time.monotonic()):
            self._call_on_loop(_fail, item, DeadlineError())

    def _run_batch(self, lane: _Lane, batch: list[Item]) -> None:
        """Run a batch, and set the result or the error of each of its items."""
        try:
            shares, run = self._run_and_split(lane, batch)
        except Exception:
            if len(batch) > 1:
                # One bad picture must not fail those of others.
                for item in batch:
                    self._run_batch(lane, [item])
            else:
                logger.exception("the engine failed")
                self._call_on_loop(_fail, batch[0], EngineError())
        except BaseException:
            for item in batch:
                self._call_on_loop(_fail, item, EngineError())
            raise
        else:
            self._call_on_loop(self._finish_batch, batch, shares, run)

    def _run_and_split(self, lane: _Lane, batch: list[Item]) -> tuple[list[Batched], BatchRun]:
        started = time.monotonic()
        inputs = assemble(batch, lane.buffer)
        gathered = time.monotonic()
        results = self._run_graph(lane, inputs, batch[0].outputs)
        ended = time.monotonic()
        lane.pause = _FIRST_PAUSE
        number, pictures = next(_numbers), sum(item.pictures for item in batch)
        ranking = Ranking(results)
        shares = [
            Batched(
                outputs=share_of(results, rows, item),
                ranking=ranking,
                row=rows.start,
                queue_seconds=gathered - item.arrival,
                run_seconds=ended - gathered,
                batch=number,
                batch_size=pictures,
            )
            for item, rows in zip(batch, rows_of(batch), strict=True)
        ]
        split = time.monotonic()
        self._update_picture_seconds((split - started) / pictures)
        run = BatchRun(
            size=pictures,
            gather=gathered - started,
            infer=ended - gathered,
            split=split - ended,
            lane=lane.number,
        )
        return shares, run

    def _run_graph(
        self, lane: _Lane, inputs: dict[str, Array], outputs: tuple[str, ...]
    ) -> dict[str, Array]:
        lane.busy = True
        try:
            runner, lanes = lane.runner, self._lanes_of(lane.runner)
            # Where the queue is not empty, another lane is about to start a run.
            share_cores = len(lanes) > 1 and (
                runner.light or self.waiting > 0 or sum(other.busy for other in lanes) > 1
            )
            return runner.run(inputs, outputs, share_cores=share_cores)
        finally:
            # Before the results are set: a client's next request must find the lane idle.
            lane.busy = False

    def _lanes_at_work(self, runner: Runner) -> int:
        """Return how many lanes of a runner share the queue: one where its runs are light."""
        return 1 if runner.light else len(self._lanes_of(runner))

    def _lanes_of(self, runner: Runner) -> list[_Lane]:
        return [lane for lane in self._lanes if lane.runner is runner]

    def _update_picture_seconds(self, picture_seconds: float) -> None:
        last = self._picture_seconds
        weight = _NEWEST_SHARE if last else 1.0
        self._picture_seconds = last + weight * (picture_seconds - last)

    def _apply_policy(self, policy: BatchPolicy) -> None:
        if policy.max_batch != self.policy.max_batch:
            logger.info(
                "%s, for answers within %.0f ms: batches of %d, a delay of %.1f ms, a queue of %d",
                self._name,
                1000 * (policy.objective or 0.0),
                policy.max_batch,
                1000 * policy.max_delay,
                policy.max_queue,
            )
        self.policy = policy

    # On the event loop. A caller may have been cancelled in the meantime.

    def _finish_batch(self, batch: list[Item], shares: list[Batched], run: BatchRun) -> None:
        try:
            if self._on_batch is not None:
                self._on_batch(run)
            if self._tuner is not None:
                self._tuner.record_run(run, waiting=self._queue.committed, now=time.monotonic())
                self._apply_policy(self._tuner.policy)
        finally:
            for item, share in zip(batch, shares, strict=True):
                if not item.future.done():
                    item.future.set_result(share)


def retry_delay(seconds: float) -> timedelta:
    """Return the delay after which a client should retry, where the queue takes `seconds`."""
    return timedelta(seconds=min(max(seconds, _SHORTEST_RETRY), _LONGEST_RETRY))


def _fail(item: Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)
