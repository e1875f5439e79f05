"""Dynamic batching: requests that wait together run together."""

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
from foveate_serve.batching.queueing import Item, Places, Queue
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
from foveate_serve.niceness import ENGINE, step_back
from foveate_serve.observer import BatchRun

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30.0

_NEWEST_SHARE = 0.2
"""The weight of the newest run in the moving average of the time that a picture takes."""

_SHORTEST_RETRY = 0.01
_LONGEST_RETRY = 30.0

_numbers = count(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batched:
    """A share of a batch.

    `outputs` are the outputs wanted, without the batch's dimension where one
    picture was submitted by itself, which `row` of the batch's `ranking` ranks;
    `queue_seconds` passed before the engine ran and `run_seconds` while it ran;
    `batch` is the number of the batch among those of the process.
    """

    outputs: dict[str, Array]
    ranking: Ranking
    row: int
    queue_seconds: float
    run_seconds: float
    batch: int
    batch_size: int


@dataclass(kw_only=True, eq=False)
class _Instance:
    """A lane of a runner and the thread that keeps it busy."""

    number: int
    runner: Runner
    cores: Cores
    buffer: NDArray[np.uint8]
    busy: bool = False
    thread: threading.Thread | None = None
    pause: float = _FIRST_PAUSE
    revival: asyncio.TimerHandle | None = None


class Batcher:
    """Runs pictures through the runners of one model, with a thread for each of their lanes.

    The threads take the next batch by themselves, so that an engine never waits
    for the event loop. A batch holds pictures that want the same outputs, led
    by the one that has waited longest at the highest priority; what waits is
    shared out among the lanes that are idle. `ran` is called on the event loop
    with every run that did not fail. Where the runners are light, a batch is
    gathered for as long as the event loop brings more. Pictures that want their
    logits alone are then run on the event loop itself where the runners are
    instant, or prompt with so many.

    A thread that ends unasked is started again, after a pause that doubles from
    one time to the next until a run succeeds; `alive` is called on the event
    loop with False when the last one has ended, and with True when one runs
    again. Made within a running event loop.

    `bounds` is the policy given, and `policy` what is in force: where there is
    an objective, a Tuner changes it, which the log tells of under `name`.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        policy: BatchPolicy | None = None,
        *,
        name: str = "a model",
        ran: Callable[[BatchRun], None] | None = None,
        alive: Callable[[bool], None] | None = None,
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
        self._ran = ran
        self._alive = alive
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._queue = Queue(policy.priorities)
        # Held where items come and go; places are kept and given back on the event loop alone.
        self._changed = threading.Condition()
        self._unanswered: set[Item] = set()
        self._hung = False
        self._came = 0
        self._gathering = False
        self._closing = False
        self._stopped = asyncio.Event()
        self._picture_seconds = 0.0
        self._instances = [
            _Instance(
                number=number,
                runner=runner,
                cores=cores,
                buffer=np.empty((policy.max_batch, *runner.image_shape), dtype=np.uint8),
            )
            for number, (runner, cores) in enumerate(lanes)
        ]
        self._running = 0
        for instance in self._instances:
            self._start(instance)

    @property
    def waiting(self) -> int:
        """How many pictures wait for a batch."""
        return self._queue.waiting

    @property
    def backlog_seconds(self) -> float:
        """How long the instances will take, by their last runs, for what waits or is coming."""
        return self._drain_seconds(self._queue.expected)

    @property
    def full(self) -> bool:
        """Whether a picture of any priority would be refused."""
        return self._queue.full(self.policy)

    def places(self, pictures: int = 1, priority: int = 0, deadline: float | None = None) -> Places:
        """Keep places for so many pictures, which `submit` then takes, until their block ends.

        So the queue is bounded before anything is spent on a picture.
        `priority` counts from 1, the highest; 0 is the default. `deadline` is a
        time of `time.monotonic`: what would not come to its turn before it is
        refused as well, by the time that what waits will take. Raises
        OverloadedError.
        """
        level = self.policy.level(priority)
        if self._queue.exceeds(self.policy, level, pictures):
            with self._changed:
                self._drop_dead()
            if self._queue.exceeds(self.policy, level, pictures):
                raise self._overloaded(level)
        if deadline is not None:
            self._require_time(level, deadline - time.monotonic())
        return self._queue.keep(level, pictures)

    @property
    def largest(self) -> int:
        """How many pictures are best submitted together, at most: what a lane takes."""
        return self.policy.share(
            self.policy.max_batch,
            idle=1,
            lanes=self._lanes_at_work(self._instances[0].runner),
            picture_seconds=self._picture_seconds,
        )

    async def submit(
        self,
        places: Places,
        image: NDArray[np.uint8],
        *,
        outputs: Sequence[str],
        class_ids: Sequence[int] = (),
        deadline: float | None = None,
    ) -> Batched:
        """Run one picture, uint8 [height, width, channels], and return the outputs wanted.

        `class_ids` are those that the maps among `outputs` explain; the rest is
        as in `submit_all`.
        """
        item = Item(
            images=image[np.newaxis],
            class_ids=np.asarray([class_ids], dtype=np.int64),
            outputs=tuple(outputs),
            deadline=deadline,
            future=self._loop.create_future(),
            single=True,
        )
        return await self._submit(places, item)

    async def submit_all(
        self,
        places: Places,
        images: NDArray[np.uint8],
        *,
        outputs: Sequence[str],
        class_ids: Sequence[Sequence[int]],
        deadline: float | None = None,
    ) -> Batched:
        """Run pictures in one batch, perhaps with others: at most `bounds.max_batch`.

        `images` is uint8 [n, height, width, channels], and each takes one of the
        `places`. `class_ids` [n, K] are those that the maps among `outputs`
        explain, `deadline` a time of `time.monotonic`. Cancelling the call, or
        passing the deadline, takes waiting pictures out of the queue. Returns
        the outputs, [n, ...] each. Raises DeadlineError and EngineError.
        """
        item = Item(
            images=images,
            class_ids=np.asarray(class_ids, dtype=np.int64),
            outputs=tuple(outputs),
            deadline=deadline,
            future=self._loop.create_future(),
        )
        return await self._submit(places, item)

    def answered(self, timing: Timing) -> None:
        """Hear how long an answer took, of which the batch is a part."""
        if self._tuner is not None:
            self._tuner.answered(timing)
            self._adopt(self._tuner.policy)

    def hangs(self, hung: bool) -> None:
        """Hear that a run does not come back, or that it has: those who wait need not."""
        self._hung = hung
        if hung:
            for item in list(self._unanswered):
                _fail(item, EngineHungError())

    async def close(self) -> None:
        """Run what waits, then stop the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for instance in self._instances:
            if instance.revival is not None:
                instance.revival.cancel()
                self._revive(instance)
        await self._stopped.wait()
        for instance in self._instances:
            if instance.thread is not None:
                instance.thread.join()

    async def _submit(self, places: Places, item: Item) -> Batched:
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            if self._hung:
                raise EngineHungError
            self._queue.put(places, item)
            self._came += 1
            if self._gathers and not self._gathering:
                self._gathering = True
                self._loop.call_soon(self._gather, self._came)
            if not self._manned:
                self._changed.notify()
        self._unanswered.add(item)
        try:
            batched: Batched = await item.future
        finally:
            self._unanswered.discard(item)
        return batched

    def _gather(self, came: int) -> None:
        """Let light pictures run, once a round of the event loop has brought no other.

        To hand a run over takes longer than the run: what is being read and
        decoded had better come along.
        """
        if came != self._came and self.waiting < self.policy.max_batch:
            self._loop.call_soon(self._gather, self._came)
            return
        with self._changed:
            batches = self._take_all() if self._runs_at_once else []
            self._gathering = False
            if self.waiting and not self._manned:
                self._changed.notify()
        # Nothing comes to the lanes in the meantime, as all of it comes from this thread.
        for batch in batches:
            self._run(self._instances[0], batch)

    def _take_all(self) -> list[list[Item]]:
        self._drop_dead()
        batches = []
        while self.waiting:
            batches.append(self._queue.take(self.policy))
        return batches

    @property
    def _runs_at_once(self) -> bool:
        policy, runner = self.policy, self._instances[0].runner
        return (
            (runner.instant or self.waiting <= runner.prompt)
            and self._instances[0].cores == ANY_CORE
            and not policy.max_delay
            and not policy.preferred_sizes
            and not any(instance.busy for instance in self._instances)
            and all(item.single and item.outputs == (LOGITS_OUTPUT,) for item in self._queue)
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
        # Its own run does not count: where nothing waits, what it takes is learnt by running it.
        wait = self._drain_seconds(self._queue.ahead(level))
        if 0 < seconds < wait:
            raise OverloadedError(
                "DEADLINE_TOO_SHORT",
                f"what waits for this model takes {wait:.2g} s; the limit is the deadline, "
                f"{seconds:.2g} s away",
                retry_delay=retry_delay(wait),
                metadata={"limit": f"{seconds:.3f}"},
            )

    def _drain_seconds(self, pictures: int) -> float:
        return pictures * self._picture_seconds / len(self._instances)

    def _start(self, instance: _Instance) -> None:
        name = f"foveate-engine-{instance.number}"
        instance.thread = threading.Thread(
            target=self._work, args=(instance,), name=name, daemon=True
        )
        self._running += 1
        instance.thread.start()

    def _ended(self) -> None:
        self._running -= 1
        if not self._running and all(instance.revival is None for instance in self._instances):
            self._stopped.set()

    def _died(self, instance: _Instance) -> None:
        logger.error("the engine's thread starts again in %.1f s", instance.pause)
        self._running -= 1
        if self._alive is not None and not self._running:
            self._alive(False)
        pause = 0 if self._closing else instance.pause
        instance.revival = self._loop.call_later(pause, self._revive, instance)
        instance.pause = min(2 * instance.pause, _LONGEST_PAUSE)

    def _revive(self, instance: _Instance) -> None:
        instance.revival = None
        first = not self._running
        self._start(instance)
        if self._alive is not None and first:
            self._alive(True)

    # Below: on an instance's thread, but for _drop_dead, which holds the lock, and for a _run
    # at once.

    def _work(self, instance: _Instance) -> None:
        try:
            step_back(ENGINE)
            with pinned(instance.cores):
                while (batch := self._next_batch(instance)) is not None:
                    if batch:
                        self._run(instance, batch)
        except BaseException:
            logger.exception("the engine's thread ended")
            with self._changed:
                # What waited for this lane is for the others now.
                self._changed.notify()
            self._tell(self._died, instance)
        else:
            self._tell(self._ended)

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        """Have a function called on the event loop, at once where this is its thread.

        A run that hung may end after the server gave it up and closed the loop:
        then nobody waits for it.
        """
        if threading.get_ident() == self._loop_thread:
            callback(*arguments)
            return
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _next_batch(self, instance: _Instance) -> list[Item] | None:
        """Wait for a batch. It may be empty; None means that there will be no other."""
        with self._changed:
            self._changed.wait_for(lambda: (self.waiting and not self._manned) or self._closing)
            if not self.waiting:
                return None
            # Another instance may take what this one gathers.
            while (
                self.policy.max_delay
                and not self._closing
                and 0 < self.waiting < self.policy.enough
                and (left := self._queue.oldest() + self.policy.max_delay - time.monotonic()) > 0
            ):
                self._changed.wait(left)
            self._drop_dead()
            lanes = self._lanes_at_work(instance.runner)
            idle = sum(not lane.busy for lane in self._lanes_of(instance.runner))
            batch = self._queue.take(
                self.policy,
                idle=min(idle, lanes),
                lanes=lanes,
                picture_seconds=self._picture_seconds,
            )
            instance.busy = bool(batch)
            if self.waiting and not self._manned:
                self._changed.notify()
            return batch

    @property
    def _gathers(self) -> bool:
        """Whether a run is so short that a batch had better be gathered for it."""
        runner = self._instances[0].runner
        return runner.light or runner.prompt > 0

    @property
    def _manned(self) -> bool:
        """Whether what waits had better wait for more, or for a lane that runs, than wake a lane.

        A light run takes no longer than waking a thread does, and what gathers
        behind it runs together.
        """
        if self._gathering and self._instances[0].runner.instant:
            return True
        return (
            self._gathers
            and self.waiting < self.policy.max_batch
            and (self._gathering or any(instance.busy for instance in self._instances))
        )

    def _drop_dead(self) -> None:
        """Take out of the queue what was cancelled or is too late."""
        for item in self._queue.drop_dead(time.monotonic()):
            self._tell(_fail, item, DeadlineError())

    def _run(self, instance: _Instance, batch: list[Item]) -> None:
        """Run a batch; whatever fails, nobody is left waiting."""
        try:
            shares, run = self._answers(instance, batch)
        except Exception:
            if len(batch) > 1:
                # One bad picture must not fail those of others.
                for item in batch:
                    self._run(instance, [item])
            else:
                logger.exception("the engine failed")
                self._tell(_fail, batch[0], EngineError())
        except BaseException:
            for item in batch:
                self._tell(_fail, item, EngineError())
            raise
        else:
            self._tell(self._deliver, batch, shares, run)

    def _answers(self, instance: _Instance, batch: list[Item]) -> tuple[list[Batched], BatchRun]:
        started = time.monotonic()
        inputs = assemble(batch, instance.buffer)
        gathered = time.monotonic()
        results = self._run_graph(instance, inputs, batch[0].outputs)
        ended = time.monotonic()
        instance.pause = _FIRST_PAUSE
        number, pictures = next(_numbers), sum(item.pictures for item in batch)
        ranking = Ranking(results)
        shares = [
            Batched(
                outputs=share_of(results, rows.start if item.single else rows, item),
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
        self._note((split - started) / pictures)
        run = BatchRun(
            size=pictures,
            gather=gathered - started,
            infer=ended - gathered,
            split=split - ended,
            lane=instance.number,
        )
        return shares, run

    def _run_graph(
        self, instance: _Instance, inputs: dict[str, Array], outputs: tuple[str, ...]
    ) -> dict[str, Array]:
        instance.busy = True
        try:
            runner, lanes = instance.runner, self._lanes_of(instance.runner)
            # Those who wait are about to be taken by another lane.
            beside = len(lanes) > 1 and (
                runner.light or self.waiting > 0 or sum(lane.busy for lane in lanes) > 1
            )
            return runner.run(inputs, outputs, beside=beside)
        finally:
            # Before the answers go out: who asks again at once must not find the lane busy.
            instance.busy = False

    def _lanes_at_work(self, runner: Runner) -> int:
        """Return how many lanes of a runner share what waits: one where its runs are light."""
        return 1 if runner.light else len(self._lanes_of(runner))

    def _lanes_of(self, runner: Runner) -> list[_Instance]:
        return [instance for instance in self._instances if instance.runner is runner]

    def _note(self, picture_seconds: float) -> None:
        last = self._picture_seconds
        weight = _NEWEST_SHARE if last else 1.0
        self._picture_seconds = last + weight * (picture_seconds - last)

    def _adopt(self, policy: BatchPolicy) -> None:
        if policy.max_batch != self.policy.max_batch:
            logger.info(
                "%s, for answers within %.0f ms: batches of %d, a delay of %.1f ms, %d may wait",
                self._name,
                1000 * (policy.objective or 0.0),
                policy.max_batch,
                1000 * policy.max_delay,
                policy.max_queue,
            )
        self.policy = policy

    # On the event loop, where a caller may have gone in the meantime.

    def _deliver(self, batch: list[Item], shares: list[Batched], run: BatchRun) -> None:
        try:
            if self._ran is not None:
                self._ran(run)
            if self._tuner is not None:
                self._tuner.ran(run, waiting=self._queue.expected, now=time.monotonic())
                self._adopt(self._tuner.policy)
        finally:
            for item, share in zip(batch, shares, strict=True):
                if not item.future.done():
                    item.future.set_result(share)


def retry_delay(seconds: float) -> timedelta:
    """Return the time after which to ask again where the work ahead takes `seconds`."""
    return timedelta(seconds=min(max(seconds, _SHORTEST_RETRY), _LONGEST_RETRY))


def _fail(item: Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)
