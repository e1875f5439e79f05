"""Dynamic batching: the queue of one model, its lanes, and the rules between them."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import Runner
from foveate_serve.batching.lane import Batched, Lane
from foveate_serve.batching.pacing import Pace, Pacing
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.batching.queueing import Item, Queue, Reservation
from foveate_serve.batching.tuning import Tuner
from foveate_serve.classification import Timing
from foveate_serve.errors import DeadlineError, EngineHungError, OverloadedError
from foveate_serve.log_context import CLIENT
from foveate_serve.observer import BatchRun

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0

_SHORTEST_RETRY = 0.01
_LONGEST_RETRY = 30.0


class Batcher:
    """Runs pictures through the runners of one model, with a thread for each of their lanes.

    Each thread takes its next batch from the queue itself, so that an engine does
    not wait for the event loop. All pictures of a batch have the same outputs.
    The first is the oldest of the highest priority. `Pacing` says when a lane starts
    a batch and how large it is. A short one runs on the event loop itself, on the
    first lane.

    A thread that ends by an error is started again, after a pause that doubles
    until a run succeeds. Made within a running event loop.

    Attributes:
        bounds: the policy given. Where it has a latency objective, a Tuner changes the
            policy in force, and the log says so under `name`.

    `pace` is what the warm-up has measured. `on_batch` is called on the event loop with
    every run that succeeded; `on_alive` with False when the last thread has ended, and
    with True when one runs again.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        policy: BatchPolicy | None = None,
        pace: Pace | None = None,
        *,
        name: str = "a model",
        on_batch: Callable[[BatchRun], None] | None = None,
        on_alive: Callable[[bool], None] | None = None,
    ) -> None:
        self.bounds = policy = policy or BatchPolicy()
        self._name = name
        self._on_batch = on_batch
        self._on_alive = on_alive
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        # The lowest level is for masked copies: they run after the pictures of all requests.
        self._queue = Queue(policy.priorities + 1)
        # Held where items enter and leave the queue. Only the event loop makes and releases
        # reservations.
        self._changed = threading.Condition()
        self._in_flight: set[Item] = set()
        self._hung = False
        self._arrivals = 0
        self._closing = False
        self._stopped = asyncio.Event()
        self._lanes = self._make_lanes(runners, policy)
        self._tuner = (
            None
            if policy.objective is None
            else Tuner(policy, policy.objective, lanes=len(self._lanes))
        )
        in_force = policy if self._tuner is None else self._tuner.policy
        self._pacing = Pacing(in_force, pace or Pace(), self._lanes)
        self._restarts: dict[Lane, asyncio.TimerHandle] = {}
        self._running = 0
        for lane in self._lanes:
            self._start(lane)

    def _make_lanes(self, runners: Sequence[Runner], policy: BatchPolicy) -> list[Lane]:
        lanes: list[Lane] = []
        for runner, cores in zip(runners, policy.cores, strict=True):
            siblings = [
                Lane(
                    len(lanes) + index,
                    runner,
                    cores,
                    max_batch=policy.max_batch,
                    take=self._next_batch,
                    share_cores=self._shares_cores,
                    on_run=self._on_run,
                    on_failed=self._on_failed,
                    on_ended=self._on_ended,
                )
                for index in range(policy.lanes_of(runner))
            ]
            for lane in siblings:
                lane.siblings = siblings
            lanes += siblings
        return lanes

    @property
    def policy(self) -> BatchPolicy:
        """The policy in force."""
        return self._pacing.policy

    @property
    def waiting(self) -> int:
        """How many pictures are in the queue."""
        return self._queue.waiting

    @property
    def backlog_seconds(self) -> float:
        """The time that the lanes need for the queue and all reservations, by their last runs."""
        return self._pacing.drain_seconds(self._queue.committed)

    @property
    def full(self) -> bool:
        """Whether a picture of any priority would be refused."""
        return self._queue.full(self.policy)

    @property
    def chunk_size(self) -> int:
        """The most pictures that are worth submitting together."""
        return self._pacing.chunk_size

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
            OverloadedError: the queue is full, or nearly full of pictures of the same
                connection, or the deadline too short.
        """
        policy = self._pacing.policy
        level, client = policy.level(priority), CLIENT.get()()
        if self._queue.exceeds(policy, level, pictures):
            self._find_room(policy, level, pictures)
        if self._queue.crowds(policy, client, pictures):
            raise self._overloaded(level)
        if deadline is not None and (self._queue.waiting or self._queue.reserved):
            self._require_time(level, deadline - time.monotonic())
        return self._queue.reserve(level, pictures, client)

    def reserve_last(self, pictures: int, deadline: float | None = None) -> Reservation:
        """Reserve places behind the pictures of every request; `deadline` as in `reserve`.

        A request is also refused where the pictures themselves take longer than the
        deadline leaves. Raises OverloadedError.
        """
        policy = self._pacing.policy
        level = policy.priorities
        if self._queue.exceeds(policy, level, pictures):
            self._find_room(policy, level, pictures)
        if deadline is not None:
            self._require_time(level, deadline - time.monotonic(), pictures)
        return self._queue.reserve(level, pictures)

    def _find_room(self, policy: BatchPolicy, level: int, pictures: int) -> None:
        """Drop what has expired; raises OverloadedError where there is no room even then."""
        with self._changed:
            self._drop_expired()
        if self._queue.exceeds(policy, level, pictures):
            raise self._overloaded(level)

    async def submit(
        self,
        reservation: Reservation,
        images: NDArray[np.uint8],
        *,
        outputs: tuple[str, ...],
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
            class_ids=np.array(class_ids, dtype=np.int64),
            outputs=outputs,
            deadline=deadline,
            future=self._loop.create_future(),
        )
        pacing = self._pacing
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            if self._hung:
                raise EngineHungError
            self._queue.put(reservation, item)
            self._arrivals += 1
            if pacing.gathers and not pacing.gathering:
                pacing.gathering = True
                self._loop.call_soon(self._gather, self._arrivals)
            if not pacing.defers(self._queue.waiting):
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
        for lane, restart in list(self._restarts.items()):
            restart.cancel()
            self._restart(lane)
        await self._stopped.wait()
        for lane in self._lanes:
            lane.join()

    def _gather(self, arrivals: int) -> None:
        """Start a batch that gathers, once a round of the event loop has brought no other picture.

        Handing a run to a thread takes longer than the run, so a batch is worth
        waiting for the pictures that are being read and decoded.
        """
        pacing, queue = self._pacing, self._queue
        if arrivals != self._arrivals and queue.waiting < pacing.policy.max_batch:
            self._loop.call_soon(self._gather, self._arrivals)
            return
        batches = []
        with self._changed:
            if pacing.runs_inline(queue):
                self._drop_expired()
                while queue.waiting:
                    batches.append(queue.take(pacing.policy, pacing.policy.max_batch))
            pacing.gathering = False
            if queue.waiting and not pacing.defers(queue.waiting):
                self._changed.notify()
        # No item enters the queue in the meantime: only this thread puts items in.
        for batch in batches:
            self._lanes[0].run_batch(batch)

    def _overloaded(self, level: int) -> OverloadedError:
        ahead = self._queue.ahead(level)
        limit = min(self.policy.bound(level), self.policy.max_queue)
        return OverloadedError(
            "QUEUE_FULL",
            f"{ahead} pictures wait for this model at this priority or above; the limit is {limit}",
            retry_delay=retry_delay(self._pacing.drain_seconds(ahead)),
            metadata={"limit": limit},
        )

    def _require_time(self, level: int, seconds: float, own: int = 0) -> None:
        # A request's own run does not count: its time is only known once pictures have run.
        wait = self._pacing.drain_seconds(self._queue.ahead(level) + own)
        if 0 < seconds < wait:
            raise OverloadedError(
                "DEADLINE_TOO_SHORT",
                f"{'the masked copies take' if own else 'the queue of this model takes'} "
                f"{wait:.2g} s; the limit is the deadline, "
                f"{seconds:.2g} s away",
                retry_delay=retry_delay(wait),
                metadata={"limit": f"{seconds:.3f}"},
            )

    def _start(self, lane: Lane) -> None:
        self._running += 1
        lane.start()

    def _note_end(self, lane: Lane, failed: bool) -> None:
        self._running -= 1
        if failed:
            logger.error("the engine's thread is restarted in %.1f s", lane.pause)
            if self._on_alive is not None and not self._running:
                self._on_alive(False)
            pause = 0 if self._closing else lane.pause
            self._restarts[lane] = self._loop.call_later(pause, self._restart, lane)
            lane.pause = min(2 * lane.pause, _LONGEST_PAUSE)
        elif not self._running and not self._restarts:
            self._stopped.set()

    def _restart(self, lane: Lane) -> None:
        del self._restarts[lane]
        first = not self._running
        self._start(lane)
        if self._on_alive is not None and first:
            self._on_alive(True)

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
        self._pacing.apply(policy)

    # The methods below run on a lane's thread, and for a run inline on the event loop, which also
    # calls _drop_expired, with the lock held.

    def _next_batch(self, lane: Lane) -> list[Item] | None:
        """Wait for a batch, which may be empty. None means that the batcher is closed."""
        pacing, queue = self._pacing, self._queue
        with self._changed:
            while not self._closing and (not queue.waiting or pacing.defers(queue.waiting)):
                self._changed.wait()
            if not queue.waiting:
                return None
            # Another lane may take the pictures that this one waits for.
            while not self._closing and (left := pacing.delay(queue, time.monotonic())) > 0:
                self._changed.wait(left)
            self._drop_expired()
            batch = queue.take(pacing.policy, pacing.share(lane, queue.waiting))
            lane.busy = bool(batch)
            if queue.waiting and not pacing.defers(queue.waiting):
                self._changed.notify()
            return batch

    def _drop_expired(self) -> None:
        """Remove from the queue what was cancelled or has passed its deadline."""
        for item in self._queue.drop_expired(time.monotonic()):
            self._on_failed(item, DeadlineError())

    def _shares_cores(self, lane: Lane) -> bool:
        return self._pacing.shares_cores(lane, self._queue.waiting)

    def _on_run(self, batch: list[Item], shares: list[Batched], run: BatchRun) -> None:
        self._pacing.record((run.gather + run.infer + run.split) / run.size)
        self._call_on_loop(self._finish, batch, shares, run)

    def _on_failed(self, item: Item, error: Exception) -> None:
        self._call_on_loop(_fail, item, error)

    def _on_ended(self, lane: Lane, failed: bool) -> None:
        if failed:
            with self._changed:
                # The other lanes take what this one was woken for.
                self._changed.notify()
        self._call_on_loop(self._note_end, lane, failed)

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

    # On the event loop. A caller may have been cancelled in the meantime.

    def _finish(self, batch: list[Item], shares: list[Batched], run: BatchRun) -> None:
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
