"""Pictures through a client: in order, bounded, and past what passes by itself."""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from foveate_client._client import Client
from foveate_client._exceptions import (
    AbortedError,
    CallError,
    DeadlineExceededError,
    FoveateError,
    ResourceExhaustedError,
    UnavailableError,
)
from foveate_client._options import ClassifyOptions
from foveate_client._results import Classification
from foveate_client.batch.sources import Item

TRANSIENT = (AbortedError, DeadlineExceededError, ResourceExhaustedError, UnavailableError)
"""Errors that may be gone when the same is asked again."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


class Task(NamedTuple):
    """A picture and its place in the input."""

    position: int
    item: Item


class Patience:
    """Waits between attempts, twice as long each time, until `seconds` have passed in vain."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        """Note that something succeeded."""
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
) -> Generator[tuple[Task, Classification | FoveateError], None, None]:
    """Yield each task with its result or its error, in their order, at most `in_flight` ahead.

    A stream that breaks is opened anew with what it had not answered, and a
    picture that is refused for the moment is asked for again, until `patience`
    seconds have passed without an answer. Then the picture's error is yielded,
    and the stream's is raised.
    """
    source = iter(tasks)
    unsent: deque[Task] = deque()
    unanswered: deque[Task] = deque()

    def images() -> Iterator[Path | bytes]:
        while (task := unsent.popleft() if unsent else next(source, None)) is not None:
            unanswered.append(task)
            yield task.item.image

    waiting = Patience(patience)
    while True:
        try:
            with closing(client.classify_many(images(), in_flight=in_flight, **options)) as answers:
                for answer in answers:
                    waiting.reset()
                    task = unanswered.popleft()
                    if isinstance(answer, TRANSIENT):
                        yield task, _again(client, task.item, options, answer, Patience(patience))
                    else:
                        yield task, answer
        except TRANSIENT as error:
            waiting.wait(error)
            unsent.extendleft(reversed(unanswered))
            unanswered.clear()
        else:
            return


def _again(
    client: Client,
    item: Item,
    options: ClassifyOptions,
    error: FoveateError,
    patience: Patience,
) -> Classification | FoveateError:
    while True:
        try:
            patience.wait(error)
        except TRANSIENT:
            return error
        try:
            return client.classify(item.image, **options)
        except TRANSIENT as latest:
            error = latest
        except FoveateError as final:
            return final
