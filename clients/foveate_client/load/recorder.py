"""Latencies by HdrHistogram, and errors by their code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from foveate_client._exceptions import MissingDistributionError

REQUIREMENT = "foveate-client[load]"

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)

_LONGEST = 3_600_000_000
"""Microseconds."""
_DIGITS = 3


class Latencies:
    """A histogram of seconds, from a microsecond to an hour, exact to three digits.

    Raises MissingDistributionError where hdrhistogram is not installed.
    """

    def __init__(self) -> None:
        try:
            from hdrh.histogram import HdrHistogram  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            raise MissingDistributionError("foveate load", REQUIREMENT) from error
        self._histogram: Any = HdrHistogram(1, _LONGEST, _DIGITS)
        # Kept here as well, because a histogram that is added to rounds its own.
        self._ends: tuple[int, int] | None = None

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def record(self, seconds: float) -> None:
        """Record one latency; one outside the histogram counts as the nearest bound."""
        value = min(max(round(seconds * 1e6), 1), _LONGEST)
        self._histogram.record_value(value)
        self._widen(value, value)

    def add(self, other: Latencies) -> None:
        """Add every latency of `other`."""
        if other._ends is not None:
            self._histogram.add(other._histogram)
            self._widen(*other._ends)

    def percentiles(self, shares: Iterable[float] = PERCENTILES) -> dict[float, float]:
        """Return the seconds within which each percentage of the requests was answered."""
        wanted = list(shares)
        if not len(self):
            return {}
        found: Mapping[float, int] = self._histogram.get_percentile_to_value_dict(wanted)
        # The upper end of a cell may lie above the largest value that was met.
        return {share: min(found[share] / 1e6, self.maximum) for share in wanted}

    @property
    def mean(self) -> float:
        """The mean in seconds."""
        return float(self._histogram.get_mean_value()) / 1e6

    @property
    def minimum(self) -> float:
        """The smallest value in seconds, 0 where there is none."""
        return 0.0 if self._ends is None else self._ends[0] / 1e6

    @property
    def maximum(self) -> float:
        """The largest value in seconds, 0 where there is none."""
        return 0.0 if self._ends is None else self._ends[1] / 1e6

    def _widen(self, smallest: int, largest: int) -> None:
        if self._ends is None:
            self._ends = smallest, largest
        else:
            self._ends = min(self._ends[0], smallest), max(self._ends[1], largest)


@dataclass(kw_only=True)
class Measurement:
    """The measurement of `seconds` seconds.

    It counts the requests that began, or were due to begin, in that time. `latencies` are
    those of the requests that succeeded, by kind. `errors` counts those that failed, by
    canonical code; `held_back` of them were not sent. `completed` counts the answers
    within that time, whenever their requests began, and `late` those of the counted
    requests after it. `delays` is how late the generator itself sent requests.
    """

    seconds: float = 0.0
    latencies: dict[str, Latencies] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    held_back: int = 0
    completed: int = 0
    late: int = 0
    delays: Latencies = field(default_factory=Latencies)

    def record(self, kind: str, seconds: float) -> None:
        """Record a success."""
        if kind not in self.latencies:
            self.latencies[kind] = Latencies()
        self.latencies[kind].record(seconds)

    def merge(self, other: Measurement) -> None:
        """Add another measurement, of another time."""
        self.seconds += other.seconds
        for kind, latencies in other.latencies.items():
            self.latencies.setdefault(kind, Latencies()).add(latencies)
        self.errors += other.errors
        self.held_back += other.held_back
        self.completed += other.completed
        self.late += other.late
        self.delays.add(other.delays)

    @property
    def rate(self) -> float:
        """Successes a second."""
        return self.completed / self.seconds if self.seconds else 0.0

    @property
    def answered(self) -> int:
        """The counted requests that succeeded."""
        return sum(map(len, self.latencies.values()))

    @property
    def in_time(self) -> int:
        """Those of them whose answer came before the end."""
        return self.answered - self.late

    @property
    def requests(self) -> int:
        """Successes and errors."""
        return self.answered + self.errors.total()

    @property
    def error_share(self) -> float:
        """The share of the requests that failed, from 0 to 1."""
        return self.errors.total() / self.requests if self.requests else 0.0

    @property
    def overall(self) -> Latencies:
        """The latencies of every kind."""
        everything = Latencies()
        for latencies in self.latencies.values():
            everything.add(latencies)
        return everything
