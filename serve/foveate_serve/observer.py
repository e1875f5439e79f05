"""What the engine tells those who measure it."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from foveate_serve.classification import Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRun:
    """One run of an engine: `size` pictures, and where its time went, in seconds.

    `gather` is the making of the engine's input, `infer` the engine's run and
    `split` the parting of its outputs; `lane` counts from 0.
    """

    size: int
    gather: float
    infer: float
    split: float
    lane: int


class Observer:
    """Is told what happens, on the event loop; by itself it listens to nothing.

    A method must be quick and must not raise. `model` and `version` are those
    of the bundle that answers, never what a client wrote; both are empty where
    a request fails before its model is found, and the version where it is
    refused before it is read.
    """

    def began(self, model: str, version: str) -> None:
        """Hear that a request has found its model; `answered` or `failed` follows."""

    def answered(self, answer: Answer) -> None:
        """Hear that a request has its answer."""

    def looked_up(self, model: str, version: str, *, hit: bool, seconds: float) -> None:
        """Hear that an answer was, or was not, among those kept; looking took so many seconds."""

    def joined(self, model: str, version: str) -> None:
        """Hear that a request waits for the answer of another one, which is the same."""

    def failed(self, model: str, version: str, error: BaseException, seconds: float) -> None:
        """Hear that a request failed after so many seconds, or its caller left (CancelledError)."""

    def ran(self, model: str, version: str, run: BatchRun) -> None:
        """Hear that the engine has run a batch."""

    def loaded(self, model: str, version: str, seconds: float) -> None:
        """Hear that a version has been loaded and serves."""

    def changed(self) -> None:
        """Hear that the state of some version is another now."""


class Observers(Observer):
    """Several observers as one, told in their order."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)

    def began(self, model: str, version: str) -> None:
        """Tell them all."""
        for observer in self._observers:
            observer.began(model, version)

    def answered(self, answer: Answer) -> None:
        """Tell them all."""
        for observer in self._observers:
            observer.answered(answer)

    def looked_up(self, model: str, version: str, *, hit: bool, seconds: float) -> None:
        """Tell them all."""
        for observer in self._observers:
            observer.looked_up(model, version, hit=hit, seconds=seconds)

    def joined(self, model: str, version: str) -> None:
        """Tell them all."""
        for observer in self._observers:
            observer.joined(model, version)

    def failed(self, model: str, version: str, error: BaseException, seconds: float) -> None:
        """Tell them all."""
        for observer in self._observers:
            observer.failed(model, version, error, seconds)

    def ran(self, model: str, version: str, run: BatchRun) -> None:
        """Tell them all."""
        for observer in self._observers:
            observer.ran(model, version, run)

    def loaded(self, model: str, version: str, seconds: float) -> None:
        """Tell them all."""
        for observer in self._observers:
            observer.loaded(model, version, seconds)

    def changed(self) -> None:
        """Tell them all."""
        for observer in self._observers:
            observer.changed()


class Changes(Observer):
    """Wakes those who wait for the state of some version to change."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def changed(self) -> None:
        """Wake them."""
        self._next.set()
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Return the event that the next change sets."""
        return self._next
