"""Epochs: train, evaluate, and keep what is needed to go on after a kill.

    fitting = Fitting(training, test, Keeper(path, identity))
    for epoch in fitting.epochs(progress, stop):
        print(epoch.number, epoch.accuracy)

A run that was killed goes on in the same way: `Fitting` begins where the state says.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import torch

from foveate_train import distributed
from foveate_train.data.batches import Data
from foveate_train.errors import CheckpointError, ResumeError
from foveate_train.progress import StepProgress
from foveate_train.training import Training, evaluate
from foveate_train.weights import DAMAGED

Identity = dict[str, Any]
"""What must be the same when a run goes on: classifier, settings, data digest."""


class Epoch(NamedTuple):
    """What one epoch came to.

    Attributes:
        number: from 1.
        loss: the mean over the epoch's pictures.
        accuracy: of the evaluation after it, 0 to 1; None without one.
        seconds: of training, without the evaluation.
    """

    number: int
    loss: float
    accuracy: float | None
    seconds: float


class Keeper:
    """Keeps a run's state in a file, which is replaced as a whole or stays as it was.

    Args:
        path: the file.
        identity: what must be the same when the run goes on.
        interval: how many seconds may be lost to a kill, beside those of one step.
    """

    def __init__(self, path: Path, identity: Identity, *, interval: float = 60) -> None:
        self.path = path
        self._identity = identity
        self._interval = interval
        self._kept = time.monotonic()

    def due(self) -> bool:
        """Tell whether the last state is older than the interval."""
        return time.monotonic() - self._kept >= self._interval

    def keep(self, state: dict[str, Any]) -> None:
        """Write a state, unless another process of the run does.

        Raises:
            CheckpointError: if the disk refuses; the former state is untouched.
        """
        self._kept = time.monotonic()
        if distributed.rank() != 0:
            return
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save({"identity": self._identity, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        # torch's writer reports a full disk as a RuntimeError of its own.
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error})") from error
        finally:
            temporary.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the state, so that a run begins anew."""
        self.path.unlink(missing_ok=True)

    def kept(self) -> dict[str, Any] | None:
        """Return the state, or None if there is none.

        Raises:
            ResumeError: the file is damaged, or belongs to another run; the
                message says what differs.
        """
        if not self.path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            theirs: Identity = state.pop("identity")
        except (OSError, *DAMAGED) as error:
            raise ResumeError(f"{self.path}: is damaged; a run begins anew without it") from error
        differing = [
            f"{name} was {theirs.get(name)!r} and is {self._identity.get(name)!r}"
            for name in sorted(theirs.keys() | self._identity.keys())
            if theirs.get(name) != self._identity.get(name)
        ]
        if differing:
            raise ResumeError(
                f"{self.path} is of another run, which cannot be resumed: {'; '.join(differing)}"
            )
        return state


class Fitting:
    """A training that is evaluated after every epoch, from the state kept, if there is one.

    Args:
        training: at its first step.
        watched: what it is evaluated on; None for no evaluation.
        precision: what the evaluation computes in.
        keeper: where its state is kept: after every epoch, every so often within
            one, and when it is stopped; the last state stays.

    Attributes:
        history: the epochs that are done, those of earlier processes included.

    Raises:
        ResumeError: the state is damaged or of another run.
    """

    def __init__(
        self,
        training: Training,
        watched: Data | None,
        keeper: Keeper,
        *,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.training = training
        self.history: list[Epoch] = []
        self._watched = watched
        self._keeper = keeper
        self._precision = precision
        # Of the epoch that is not at its end: the sum of the losses of so many
        # pictures, and the seconds that it took.
        self._loss = torch.zeros((), device=training.device)
        self._seen = 0
        self._seconds = 0.0
        state = keeper.kept()
        if state is not None:
            training.restore(state["training"])
            self.history = [Epoch(*epoch) for epoch in state["history"]]
            self._loss = state["loss"].to(training.device)
            self._seen, self._seconds = state["seen"], state["seconds"]

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
        began = time.perf_counter()
        for step in self.training.steps():
            self._loss = self._loss + step.loss * step.images
            self._seen += step.images
            progress.step(step)
            stopping = distributed.any_wants(stop.is_set())
            if not (step.ends_epoch or stopping or self._keeper.due()):
                continue
            self._seconds += time.perf_counter() - began
            if step.ends_epoch:
                self._end_epoch(step.epoch)
            self._keeper.keep(self._state())
            if step.ends_epoch:
                yield self.history[-1]
            if stopping or (step.ends_epoch and self._patience_is_spent()):
                return
            began = time.perf_counter()

    def _end_epoch(self, number: int) -> None:
        module = self.training.result.module
        accuracy = (
            None
            if self._watched is None
            else evaluate(module, self._watched, precision=self._precision)
        )
        self.history.append(Epoch(number, float(self._loss) / self._seen, accuracy, self._seconds))
        self._loss, self._seen, self._seconds = torch.zeros_like(self._loss), 0, 0.0

    def _state(self) -> dict[str, Any]:
        return {
            "training": self.training.state(),
            "history": [tuple(epoch) for epoch in self.history],
            "loss": self._loss,
            "seen": self._seen,
            "seconds": self._seconds,
        }

    def _patience_is_spent(self) -> bool:
        """Tell whether the best accuracy is as many epochs old as the settings allow."""
        patience = self.training.settings.patience
        accuracies = [epoch.accuracy for epoch in self.history if epoch.accuracy is not None]
        if patience is None or not accuracies:
            return False
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= patience
