"""A run: epochs of training that are evaluated, and the file that a killed run goes on from.

    run = Run(training, test, Path("digits.run/state.pt"))
    for epoch in run.epochs(progress, stop):
        print(epoch.number, epoch.accuracy)

A run that was killed goes on in the same way: `Run` begins where the file says.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import torch

from foveate_train import distributed
from foveate_train.data.batches import Data
from foveate_train.errors import CheckpointError, ResumeError
from foveate_train.loop import Tally, Training, tally
from foveate_train.progress import StepProgress
from foveate_train.state_dicts import DAMAGED

_INTERVAL = 60.0
"""How many seconds of training a kill may lose."""


class Epoch(NamedTuple):
    """What one epoch came to.

    Attributes:
        number: from 1; 0 is what stood before the first step.
        loss: the mean over the epoch's pictures; not a number before the first step.
        accuracy: of the evaluation after it, 0 to 1; None without one.
        seconds: of training, without the evaluation.
    """

    number: int
    loss: float
    accuracy: float | None
    seconds: float


class Run:
    """A training that is evaluated after every epoch, from the state kept, if there is one.

    Args:
        training: at its first step.
        watched: what it is evaluated on; None for no evaluation.
        path: the file of its state: written after every epoch, every so often
            within one, and when the run is stopped; the last state stays.
        precision: what the evaluation computes in.
        from_start: whether it is evaluated before the first step, too.

    Attributes:
        history: the epochs that are done, those of earlier processes included.
        tally: of the last evaluation.

    Raises:
        ResumeError: the state is damaged or of another run.
    """

    def __init__(
        self,
        training: Training,
        watched: Data | None,
        path: Path,
        *,
        precision: torch.dtype = torch.float32,
        from_start: bool = False,
    ) -> None:
        self.training = training
        self.history: list[Epoch] = []
        self.tally: Tally | None = None
        self._from_start = from_start
        self._watched = watched
        self._path = path
        self._precision = precision
        self._kept = time.monotonic()
        # Of the epoch that is not at its end: the sum of the losses of so many
        # pictures, and the seconds that it took.
        self._loss = torch.zeros((), device=training.device)
        self._seen = 0
        self._seconds = 0.0
        state = read_state(path, self._identity())
        if state is not None:
            training.restore(state["training"])
            self.history = [Epoch(*epoch) for epoch in state["history"]]
            self._loss = state["loss"].to(training.device)
            self._seen, self._seconds = state["seen"], state["seconds"]
            self.tally = Tally(*state["tally"]) if state["tally"] else None

    @property
    def best(self) -> Epoch:
        """The epoch with the highest accuracy, and of several the last."""
        return max(self.history, key=lambda epoch: (epoch.accuracy or 0, epoch.number))

    @property
    def is_below_its_start(self) -> bool:
        """Whether the last evaluation was worse than the one before the first step."""
        begin, last = self.history[0], self.history[-1]
        return begin.number == 0 and (last.accuracy or 0) < (begin.accuracy or 0)

    @property
    def within_epoch(self) -> bool:
        """Whether an epoch has begun and is not at its end."""
        return self._seen > 0

    def epochs(self, progress: StepProgress, stop: Event) -> Iterator[Epoch]:
        """Do the epochs that remain, until `stop` is set or patience is spent.

        Raises:
            CheckpointError: a state cannot be written; the former one is whole.
        """
        if self._patience_is_spent():
            return
        if self._from_start and self.training.number == 0:
            self.history.append(Epoch(0, math.nan, self._evaluate(), 0.0))
            yield self.history[-1]
        began = time.perf_counter()
        for step in self.training.steps():
            self._loss = self._loss + step.loss * step.images
            self._seen += step.images
            progress.step(step)
            stopping = distributed.any_wants(stop.is_set())
            due = time.monotonic() - self._kept >= _INTERVAL
            if not (step.ends_epoch or stopping or due):
                continue
            self._seconds += time.perf_counter() - began
            if step.ends_epoch:
                self._end_epoch(step.epoch)
            self._keep()
            if step.ends_epoch:
                yield self.history[-1]
            if stopping or (step.ends_epoch and self._patience_is_spent()):
                return
            began = time.perf_counter()

    def _end_epoch(self, number: int) -> None:
        loss = float(self._loss) / self._seen
        self.history.append(Epoch(number, loss, self._evaluate(), self._seconds))
        self._loss, self._seen, self._seconds = torch.zeros_like(self._loss), 0, 0.0

    def _evaluate(self) -> float | None:
        if self._watched is None:
            return None
        self.tally = tally(self.training.network, self._watched, precision=self._precision)
        return self.tally.accuracy

    def _keep(self) -> None:
        self._kept = time.monotonic()
        if distributed.rank() == 0:
            state = {
                "training": self.training.state(),
                "history": [tuple(epoch) for epoch in self.history],
                "loss": self._loss,
                "seen": self._seen,
                "seconds": self._seconds,
                "tally": self.tally and tuple(self.tally),
            }
            write_state(self._path, self._identity(), state)

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same when the run goes on."""
        training = self.training
        return {
            "classifier": training.classifier.name,
            "arguments": training.classifier.arguments,
            "data": training.data.digest,
            "frozen": list(training.backbone.frozen) if training.backbone else [],
            **training.settings.model_dump(mode="json"),
        }

    def _patience_is_spent(self) -> bool:
        """Return whether the best accuracy is as many epochs old as the settings allow."""
        patience = self.training.settings.patience
        accuracies = [epoch.accuracy for epoch in self.history if epoch.accuracy is not None]
        if patience is None or not accuracies:
            return False
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= patience


def write_state(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a run's state; the file is replaced as a whole or stays as it was.

    Raises:
        CheckpointError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"identity": dict(identity), **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch's writer raises an error of its own while it handles that of a full disk.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(f"{path}: cannot be written ({cause})") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_state(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of the run with this identity, or None if there is no file.

    Raises:
        ResumeError: the file is damaged, or belongs to another run; the
            message says what differs.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        theirs = state.pop("identity")
    except (OSError, *DAMAGED) as error:
        raise ResumeError(f"{path}: is damaged; a run begins anew without it") from error
    differing = [
        f"{name} was {theirs.get(name)!r} and is {identity.get(name)!r}"
        for name in sorted(theirs.keys() | identity.keys())
        if theirs.get(name) != identity.get(name)
    ]
    if differing:
        raise ResumeError(
            f"{path} is of another run, which cannot be resumed: {'; '.join(differing)}"
        )
    return state
