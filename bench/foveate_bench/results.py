"""What a benchmark measures of each engine: the parts of `results.json`.

Times are in milliseconds or seconds and memory is in bytes, as the names say.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from foveate_runtime.bundle.manifest import Name, Positive, Share

OutputKind = Literal["logits", "cam", "features"]
"""What is fetched: the logits alone, the maps of the five best classes as well, or
one feature map as well."""

OUTPUT_KINDS: tuple[OutputKind, ...] = ("logits", "cam", "features")

Amount = Annotated[float, Field(ge=0)]

_PERCENTILES = (50, 90, 95, 99)


class Record(BaseModel):
    """A part of the results: its fields are fixed, and none may be unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Configuration(Record):
    """A variant of a model, loaded on a backend and a device.

    `threads` are those of one run.
    """

    model: Name
    version: Positive
    variant: Name
    backend: str
    device: str
    threads: Positive

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + "s" * (self.threads > 1)
        return f"{self.model} {self.variant} on {self.backend}, {self.device}, {threads}"


class Case(Configuration):
    """What is timed: one configuration on batches of one size, with what is fetched of each."""

    batch: Positive
    outputs: OutputKind

    @property
    def configuration(self) -> Configuration:
        """What runs it."""
        return Configuration(**{name: getattr(self, name) for name in Configuration.model_fields})

    @property
    def question(self) -> tuple[str, int, OutputKind, int]:
        """What configurations compete in: model, version, outputs and batch."""
        return self.model, self.version, self.outputs, self.batch

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.outputs}, batch {self.batch}"


class Latency(Record):
    """The distribution of the time of one run, over all runs of all rounds, outliers kept.

    Percentiles are interpolated linearly between the runs, so those above what
    `runs` can tell lie close to the largest.
    """

    runs: Positive
    mean_ms: Amount
    min_ms: Amount
    p50_ms: Amount
    p90_ms: Amount
    p95_ms: Amount
    p99_ms: Amount
    max_ms: Amount

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Return the distribution of the times of at least one run."""
        milliseconds = 1000 * np.asarray(seconds)
        p50, p90, p95, p99 = np.percentile(milliseconds, _PERCENTILES).tolist()
        return cls(
            runs=len(seconds),
            mean_ms=float(milliseconds.mean()),
            min_ms=float(milliseconds.min()),
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            max_ms=float(milliseconds.max()),
        )

    @model_validator(mode="after")
    def _rises(self) -> Self:
        order = (self.min_ms, self.p50_ms, self.p90_ms, self.p95_ms, self.p99_ms, self.max_ms)
        if any(low > high for low, high in pairwise(order)):
            raise ValueError(f"the percentiles {order} do not rise")
        return self


class Measurement(Record):
    """What was measured of one case.

    Attributes:
        case: what was timed.
        latency: the time of one run of the whole batch, decoding left out.
        round_medians_ms: the median of each round, in their order. The rounds
            of all cases of a model alternate, so equal places saw the machine
            in the same state.
        images_per_second: the pictures of all runs over the time of all runs.
        cpu_seconds_per_image: the processor time of the whole process, its
            engine's threads included.
        peak_memory_bytes: the most resident memory of a process that has loaded
            the engine and run this case, and smaller batches before it; a GPU's
            own memory is not in it.
        load_seconds: from the bundle to an engine that is ready, the import of
            the engine's package left out.
        build_seconds: what building the engine from the graph took; None where
            the backend builds nothing that it keeps apart.
        first_request_seconds: the first run of these outputs in a fresh
            process, which compiles what they need.
    """

    case: Case
    latency: Latency
    round_medians_ms: Annotated[tuple[Amount, ...], Field(min_length=1)]
    images_per_second: Amount
    cpu_seconds_per_image: Amount
    peak_memory_bytes: Annotated[int, Field(ge=0)]
    load_seconds: Amount
    build_seconds: Amount | None = None
    first_request_seconds: Amount

    @property
    def spread(self) -> float:
        """The largest round median less the smallest, as a share of the median of all runs."""
        return (max(self.round_medians_ms) - min(self.round_medians_ms)) / self.latency.p50_ms


class Accuracy(Record):
    """What a variant scores on labelled pictures on a backend."""

    model: Name
    version: Positive
    variant: Name
    backend: str
    device: str
    data: str
    images: Positive
    top1: Share
    top5: Share


class Refusal(Record):
    """What was not measured, why, and what would change that."""

    what: str
    reason: str
    remedy: str = ""


class Ties(Record):
    """The cases that answer one question as fast as the fastest, as far as the rounds can tell."""

    fastest: Case
    tied: tuple[Case, ...]


def tie(first: Measurement, second: Measurement) -> bool:
    """Return whether the difference of two cases lies inside its spread over the rounds.

    The rounds alternate, so the medians are compared round by round: it is a
    tie unless the same case was the faster in all of them.
    """
    pairs = list(zip(first.round_medians_ms, second.round_medians_ms, strict=False))
    return not (all(a < b for a, b in pairs) or all(a > b for a, b in pairs))


def find_ties(measurements: Sequence[Measurement]) -> tuple[Ties, ...]:
    """Return for each question the fastest case by its median, and those that tie with it."""
    questions: dict[tuple[str, int, OutputKind, int], list[Measurement]] = {}
    for measurement in measurements:
        questions.setdefault(measurement.case.question, []).append(measurement)
    found = []
    for rivals in questions.values():
        fastest = min(rivals, key=lambda measurement: measurement.latency.p50_ms)
        tied = [m.case for m in rivals if m is not fastest and tie(m, fastest)]
        found.append(Ties(fastest=fastest.case, tied=tuple(tied)))
    return tuple(found)
