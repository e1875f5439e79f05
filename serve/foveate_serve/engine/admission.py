"""Admission: bounds the pictures in flight in the whole server, and shares them among models."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from foveate_serve.errors import OverloadedError


@dataclass(slots=True)
class _InFlight:
    pictures: int = 0
    size: int = 0


class Admitted:
    """An admitted request, which counts as in flight until its `with` block ends."""

    __slots__ = ("_held", "_pictures", "_size", "_total")

    def __init__(self, held: _InFlight, total: _InFlight, pictures: int, size: int) -> None:
        self._held, self._total = held, total
        self._pictures, self._size = pictures, size
        held.pictures += pictures
        held.size += size
        total.pictures += pictures
        total.size += size

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._held.pictures -= self._pictures
        self._held.size -= self._size
        self._total.pictures -= self._pictures
        self._total.size -= self._size


class Admission:
    """Bounds the pictures in flight in the whole server, by their number and by their bytes.

    Once several models have had requests, each may hold as much as is still free: a
    single busy model half of the limit, two a third each. So a flood of requests for
    one model leaves room for the others (dynamic thresholds, Choudhury and Hahne
    1998). A model with nothing in flight is always admitted; its own limits then
    apply. Used from one event loop.
    """

    def __init__(self, *, max_pictures: int, max_bytes: int) -> None:
        self._max_pictures = max_pictures
        self._max_bytes = max_bytes
        self._total = _InFlight()
        self._models: defaultdict[str, _InFlight] = defaultdict(_InFlight)

    @property
    def alone(self) -> bool:
        """Whether no more than one picture is in flight."""
        return self._total.pictures <= 1

    def admit(
        self, model: str, *, pictures: int, size: int, retry_delay: Callable[[], timedelta]
    ) -> Admitted:
        """Admit a request of `pictures` pictures, `size` bytes together, until its block ends.

        Raises OverloadedError, whose delay is what `retry_delay` returns.
        """
        held, total = self._models[model], self._total
        if held.pictures:
            if self._exceeds(self._max_pictures, pictures, held.pictures, total.pictures):
                raise OverloadedError(
                    "TOO_MANY_REQUESTS",
                    f"{total.pictures} pictures are in flight, of this model {held.pictures}; "
                    f"the limit is {self._max_pictures}{self._shared}",
                    retry_delay=retry_delay(),
                    metadata={"limit": self._max_pictures},
                )
            if self._exceeds(self._max_bytes, size, held.size, total.size):
                raise OverloadedError(
                    "TOO_MANY_BYTES",
                    f"the pictures in flight have {total.size} bytes, of this model {held.size}; "
                    f"the limit is {self._max_bytes} bytes{self._shared}",
                    retry_delay=retry_delay(),
                    metadata={"limit": self._max_bytes},
                )
        return Admitted(held, total, pictures, size)

    def _exceeds(self, limit: int, more: int, held: int, total: int) -> bool:
        if len(self._models) > 1:
            return held + more > limit - total
        return total + more > limit

    @property
    def _shared(self) -> str:
        return ", shared by the models" if len(self._models) > 1 else ""
