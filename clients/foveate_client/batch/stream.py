"""Classifies pictures through a client: in order, a bounded number at once, with retries."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeAlias

from foveate_client._client import Client
from foveate_client._exceptions import (
    MESSAGE_TOO_LARGE,
    AbortedError,
    CallError,
    DeadlineExceededError,
    FailedPreconditionError,
    FoveateError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from foveate_client._options import ClassifyOptions
from foveate_client._results import Classification
from foveate_client.batch.sources import Item

TRANSIENT = (AbortedError, DeadlineExceededError, ResourceExhaustedError, UnavailableError)
"""Errors after which a retry may succeed, except for a message that is too large."""

_OF_THE_RUN = (
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnimplementedError,
)
_PICTURE = ("encoded", "image", "raw")
"""The fields of a request that hold its picture."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


def may_pass(error: FoveateError) -> bool:
    """Return whether a retry may succeed."""
    return isinstance(error, TRANSIENT) and error.reason != MESSAGE_TOO_LARGE


def stops_the_run(outcome: FoveateError) -> bool:
    """Return whether every picture would have this error, of the server, model or options."""
    if isinstance(outcome, InvalidArgumentError):
        fields = [violation.field for violation in outcome.field_violations]
        return bool(fields) and not any(field.startswith(_PICTURE) for field in fields)
    if isinstance(outcome, CallError) and may_pass(outcome):
        # One picture may take longer than others.
        return not isinstance(outcome, DeadlineExceededError)
    hung = isinstance(outcome, CallError) and outcome.reason == "ENGINE_HUNG"
    return hung or isinstance(outcome, _OF_THE_RUN)


class Task(NamedTuple):
    """A picture and its place in the input."""

    position: int
    item: Item


Answered: TypeAlias = tuple[Task, Classification | FoveateError]
"""A task with its result or its error."""

Answers: TypeAlias = Callable[[Iterable[Task]], Generator[Answered, None, None]]
"""Answers tasks, in any order, and reads them lazily."""


class Patience:
    """Waits between attempts, twice as long each time, for `seconds` in all without a success."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        """Start the time again, after a success."""
        self._pause = _FIRST_PAUSE
        self._until: float | None = None

    def wait(self, error: FoveateError) -> None:
        """Wait before the next attempt. Raises `error` when the time is over."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._seconds
        pause = self._pause
        if isinstance(error, CallError) and error.retry_delay is not None:
            pause = max(pause, error.retry_delay.total_seconds())
        if now + pause > self._until:
            raise error
        time.sleep(pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def classify_tasks(
    client: Client,
    tasks: Iterable[Task],
    options: ClassifyOptions,
    *,
    in_flight: int,
    patience: float,
) -> Generator[Answered, None, None]:
    """Yield each task with its result or its error, in their order, at most `in_flight` ahead.

    A stream that fails is opened again with the pictures that it had not answered, and
    a picture that was refused is retried, until `patience` seconds have passed without
    an answer. Then the error is raised, or yielded where only this picture may be too
    slow. An error that every picture would have, such as of an unloaded model, is raised
    at once.
    """
    source = iter(tasks)
    unsent: deque[Task] = deque()
    unanswered: deque[Task] = deque()

    def images() -> Iterator[Path | bytes]:
        while (task := unsent.popleft() if unsent else next(source, None)) is not None:
            unanswered.append(task)
            yield task.item.image

    waiting = Patience(patience)
    stopped: FoveateError | None = None
    while stopped is None:
        try:
            with closing(client.classify_many(images(), in_flight=in_flight, **options)) as answers:
                for answer in answers:
                    waiting.reset()
                    task = unanswered.popleft()
                    outcome = answer
                    if isinstance(answer, FoveateError) and may_pass(answer):
                        outcome = ask_again(client, task.item, options, answer, Patience(patience))
                    if isinstance(outcome, FoveateError) and stops_the_run(outcome):
                        stopped = outcome
                        break
                    yield task, outcome
                else:
                    return
        except TRANSIENT as error:
            if not may_pass(error):
                raise
            waiting.wait(error)
            unsent.extendleft(reversed(unanswered))
            unanswered.clear()
    raise stopped


def ask(
    client: Client, item: Item, options: ClassifyOptions, patience: float
) -> Classification | FoveateError:
    """Classify one picture, with retries for up to `patience` seconds; return the outcome."""
    try:
        return client.classify(item.image, **options)
    except FoveateError as error:
        return ask_again(client, item, options, error, Patience(patience))


def ask_again(
    client: Client,
    item: Item,
    options: ClassifyOptions,
    error: FoveateError,
    patience: Patience,
) -> Classification | FoveateError:
    """Retry one picture that had `error`; return the result, or the last error."""
    if not may_pass(error):
        return error
    while True:
        try:
            patience.wait(error)
        except TRANSIENT:
            return error
        try:
            return client.classify(item.image, **options)
        except FoveateError as latest:
            if not may_pass(latest):
                return latest
            error = latest
