"""When the lanes of a model start their batches, and how large these are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from foveate_runtime.bundle.manifest import LOGITS_OUTPUT
from foveate_runtime.cores import ANY_CORE, Cores
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.batching.queueing import Queue

_NEWEST_SHARE = 0.2
"""The weight of the newest run in the moving average of the run time of a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How short the runs of a model are, as the warm-up has measured.

    Attributes:
        light: whether one picture's run for its logits is so short that a single
            thread does it as fast as several.
        inline_pictures: for up to how many pictures a run for the logits is short
            enough for the event loop's own thread.
    """

    light: bool = False
    inline_pictures: int = 0

    @property
    def gathers(self) -> bool:
        """Whether waiting for a larger batch pays: a run takes no longer than waking a thread."""
        return self.light or self.inline_pictures > 0


def slowest(paces: Sequence[Pace]) -> Pace:
    """Return the pace at which every one of several instances can run."""
    return Pace(
        light=all(pace.light for pace in paces),
        inline_pictures=min(pace.inline_pictures for pace in paces),
    )


class PacedLane(Protocol):
    """What the pacing reads of a lane; see `Lane`."""

    @property
    def busy(self) -> bool: ...  # noqa: D102

    @property
    def cores(self) -> Cores: ...  # noqa: D102

    @property
    def siblings(self) -> Sequence["PacedLane"]: ...  # noqa: D102


class Pacing:
    """The rules by which the lanes of a model share its queue.

    Idle lanes share what is in the queue at once, each a part. At other paces a batch
    gathers pictures: for as long as each round of the event loop brings another one, and
    while another batch runs. Such a batch runs on the event loop itself where it is short
    enough and its only output is the logits.

    Attributes:
        policy: the policy in force.
        gathering: whether a batch gathers; set by the batcher.
        picture_seconds: the moving average of the run time of a picture; 0 if unknown.
    """

    def __init__(self, policy: BatchPolicy, pace: Pace, lanes: Sequence[PacedLane]) -> None:
        self.gathering = False
        self.gathers = pace.gathers
        self.picture_seconds = 0.0
        self._pace = pace
        self._lanes = lanes
        self.apply(policy)

    def apply(self, policy: BatchPolicy) -> None:
        """Put another policy in force."""
        self.policy = policy
        batches_form = policy.max_delay or policy.preferred_sizes
        inline = self._lanes[0].cores == ANY_CORE and not batches_form
        self._most_inline = self._pace.inline_pictures if inline else 0

    @property
    def chunk_size(self) -> int:
        """The most pictures that are worth submitting together: what one lane takes."""
        return self.policy.share(
            self.policy.max_batch,
            idle=1,
            lanes=self._lanes_at_work(self._lanes[0]),
            picture_seconds=self.picture_seconds,
        )

    def defers(self, waiting: int) -> bool:
        """Return whether the queue should grow further before an idle lane is woken.

        The pictures that arrive during a light run share the next batch.
        """
        return (
            self.gathers
            and waiting < self.policy.max_batch
            and (self.gathering or self._any_busy(self._lanes))
        )

    def delay(self, queue: Queue, now: float) -> float:
        """Return the seconds for which an idle lane waits for a batch to fill."""
        if not self.policy.max_delay or not 0 < queue.waiting < self.policy.enough:
            return 0.0
        return queue.oldest() + self.policy.max_delay - now

    def share(self, lane: PacedLane, waiting: int) -> int:
        """Return the most pictures that an idle lane takes of those in the queue."""
        lanes, busy = self._lanes_at_work(lane), 0
        for other in lane.siblings:
            busy += other.busy
        return self.policy.share(
            waiting,
            idle=min(len(lane.siblings) - busy, lanes),
            lanes=lanes,
            picture_seconds=self.picture_seconds,
        )

    def runs_inline(self, queue: Queue) -> bool:
        """Return whether the batch that has gathered runs on the event loop's own thread."""
        if queue.waiting > self._most_inline or self._any_busy(self._lanes):
            return False
        for item in queue:  # noqa: SIM110 - a generator for each batch takes longer
            if item.pictures != 1 or item.outputs != (LOGITS_OUTPUT,):
                return False
        return True

    def shares_cores(self, lane: PacedLane, waiting: int) -> bool:
        """Return whether the run of a lane, which is busy, is to leave cores to others."""
        if len(lane.siblings) == 1:
            return False
        busy = 0
        for other in lane.siblings:
            busy += other.busy
        # Where the queue is not empty, another lane is about to start a run.
        return self._pace.light or waiting > 0 or busy > 1

    def drain_seconds(self, pictures: int) -> float:
        """Return the time that all lanes take for so many pictures, by their last runs."""
        return pictures * self.picture_seconds / len(self._lanes)

    def record(self, picture_seconds: float) -> None:
        """Record the time of a picture in one more run."""
        last = self.picture_seconds
        weight = _NEWEST_SHARE if last else 1.0
        self.picture_seconds = last + weight * (picture_seconds - last)

    def _lanes_at_work(self, lane: PacedLane) -> int:
        """Return how many lanes of a runner share the queue: one where its runs are light."""
        return 1 if self._pace.light else len(lane.siblings)

    @staticmethod
    def _any_busy(lanes: Sequence[PacedLane]) -> bool:
        for lane in lanes:  # noqa: SIM110 - as above
            if lane.busy:
                return True
        return False
