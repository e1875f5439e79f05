"""The observer of the engine: metrics, statistics and traces subclass it."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from foveate_serve.classification import Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRun:
    """One run of an engine: `size` pictures, and the seconds of its stages.

    `gather` assembles the engine's input, `infer` is the engine's run, and `split`
    divides its outputs among the requests. `lane` counts from 0.
    """

    size: int
    gather: float
    infer: float
    split: float
    lane: int


class Observer:
    """Is notified of events, on the event loop; this base class ignores them.

    A method must be quick and must not raise. `model` and `version` are the names of
    the bundle, never a text of the client's. Both are empty where a request fails
    before its model is found; the version is empty where a request is refused before
    its message is read.
    """

    def on_start(self, model: str, version: str) -> None:
        """A request has found its model; `on_answer` or `on_failure` follows."""

    def on_answer(self, answer: Answer) -> None:
        """A request has its answer."""

    def on_cache_lookup(self, model: str, version: str, *, hit: bool, seconds: float) -> None:
        """A lookup in the cache ended, after `seconds`."""

    def on_join(self, model: str, version: str) -> None:
        """A request shares the run of an identical one in flight."""

    def on_failure(self, model: str, version: str, error: BaseException, seconds: float) -> None:
        """A request failed after `seconds`; CancelledError means that its caller cancelled it."""

    def on_batch(self, model: str, version: str, run: BatchRun) -> None:
        """An engine has run a batch."""

    def on_load(self, model: str, version: str, seconds: float) -> None:
        """A version was loaded in `seconds` and serves."""

    def on_change(self) -> None:
        """The state of a version has changed."""


class Observers(Observer):
    """Several observers as one, notified in their order, but for those that ignore an event.

    Every request has three events, so the methods are looked up once.
    """

    def __init__(self, observers: Iterable[Observer]) -> None:
        observers = tuple(observers)
        for event in [name for name in vars(Observer) if name.startswith("on_")]:
            ignored = getattr(Observer, event)
            methods = [getattr(o, event) for o in observers if getattr(type(o), event) != ignored]
            setattr(self, event, methods[0] if len(methods) == 1 else _each(methods))


def _each(methods: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def notify(*arguments: object, **named: object) -> None:
        for method in methods:
            method(*arguments, **named)

    return notify


class Changes(Observer):
    """Resumes the tasks that wait for the state of a version to change."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def on_change(self) -> None:
        """Resume the waiting tasks."""
        self._next.set()
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Return the event that the next change sets."""
        return self._next
