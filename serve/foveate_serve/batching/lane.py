"""A lane of a runner: the thread that runs its batches, and what becomes of each."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from foveate_runtime.backends.base import Array, Runner
from foveate_runtime.cores import Cores, pinned
from foveate_serve.batching.queueing import Item
from foveate_serve.batching.ranking import Ranking
from foveate_serve.batching.rows import assemble, require_numbers, share_of
from foveate_serve.errors import EngineError
from foveate_serve.niceness import ENGINE, raise_niceness
from foveate_serve.observer import BatchRun

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.1

_numbers = count(1)


@dataclass(slots=True, eq=False)
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


class Lane:
    """Runs batches on a runner, one at a time, on a thread of its own.

    Args:
        number: counts the lanes of a model from 0.
        runner: runs the batches.
        cores: the cores that the thread runs on.
        max_batch: the most pictures in a batch.
        take: waits for the next batch, which may be empty; None ends the thread.
        share_cores: returns whether a run is to leave cores to others.
        on_run: is called with a batch, the shares of its items, and the run.
        on_failed: is called with an item and its error.
        on_ended: is called at the end of the thread, with whether an error ended it.

    Attributes:
        siblings: the lanes of the same runner, this one among them.
        busy: whether a batch runs or is about to.
        pause: the seconds after which a thread that an error ended is to start again;
            it doubles until a run succeeds.
    """

    def __init__(
        self,
        number: int,
        runner: Runner,
        cores: Cores,
        *,
        max_batch: int,
        take: Callable[["Lane"], list[Item] | None],
        share_cores: Callable[["Lane"], bool],
        on_run: Callable[[list[Item], list[Batched], BatchRun], None],
        on_failed: Callable[[Item, Exception], None],
        on_ended: Callable[["Lane", bool], None],
    ) -> None:
        self.number = number
        self.runner = runner
        self.cores = cores
        self.siblings: Sequence[Lane] = (self,)
        self.busy = False
        self.pause = FIRST_PAUSE
        self._buffer = np.empty((max_batch, *runner.image_shape), dtype=np.uint8)
        self._take = take
        self._share_cores = share_cores
        self._on_run = on_run
        self._on_failed = on_failed
        self._on_ended = on_ended
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        name = f"foveate-engine-{self.number}"
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the thread has ended; return whether it has."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def run_batch(self, batch: list[Item]) -> None:
        """Run a batch, and set the result or the error of each of its items."""
        try:
            shares, run = self._run_and_split(batch)
        except Exception:
            if len(batch) > 1:
                # One bad picture must not fail those of others.
                for item in batch:
                    self.run_batch([item])
            else:
                logger.exception("the engine failed")
                self._on_failed(batch[0], EngineError())
        except BaseException:
            for item in batch:
                self._on_failed(item, EngineError())
            raise
        else:
            self._on_run(batch, shares, run)

    def _work(self) -> None:
        try:
            raise_niceness(ENGINE)
            with pinned(self.cores):
                while (batch := self._take(self)) is not None:
                    if batch:
                        self.run_batch(batch)
        except BaseException:
            logger.exception("the engine's thread ended")
            self._on_ended(self, True)
        else:
            self._on_ended(self, False)

    def _run_and_split(self, batch: list[Item]) -> tuple[list[Batched], BatchRun]:
        started = time.monotonic()
        inputs = assemble(batch, self._buffer)
        gathered = time.monotonic()
        self.busy = True
        try:
            results = self.runner.run(inputs, batch[0].outputs, share_cores=self._share_cores(self))
        finally:
            # Before the results are set: a client's next request must find the lane idle.
            self.busy = False
        require_numbers(results)
        ended = time.monotonic()
        self.pause = FIRST_PAUSE
        number, pictures = next(_numbers), 0
        for item in batch:
            pictures += item.pictures
        ranking, shares, row = Ranking(results), [], 0
        for item in batch:
            share = Batched(
                share_of(results, row, item),
                ranking,
                row,
                gathered - item.arrival,
                ended - gathered,
                number,
                pictures,
            )
            shares.append(share)
            row += item.pictures
        run = BatchRun(
            size=pictures,
            gather=gathered - started,
            infer=ended - gathered,
            split=time.monotonic() - ended,
            lane=self.number,
        )
        return shares, run
