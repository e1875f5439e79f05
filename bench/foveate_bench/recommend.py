"""What to serve a model with, for a stated objective, chosen from what was measured."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

from foveate_bench.results import Accuracy, Amount, Case, Measurement, Record, Refusal
from foveate_runtime.bundle.manifest import Name

REFERENCE = "fp32"
"""The variant that accuracy is lost against."""

PROFILE_FILE = "profile.toml"

_SAME_MEMORY = 0.01
"""The share by which two processes of one engine differ in memory."""

_NAMED = 3
"""Rivals that a sentence names."""


class Objective(Record):
    """What is wanted: the most throughput within a bound of p99, the most at all, or least memory.

    `p99_ms` bounds the 99th percentile of one run of a batch.
    """

    kind: Literal["p99", "throughput", "memory"]
    p99_ms: Amount | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `p99=30`, in milliseconds, `p99=30ms`, `throughput` or `memory`.

        Raises ValueError, whose message says what there is.
        """
        name, separator, value = text.partition("=")
        if name == "p99" and separator:
            try:
                bound = float(value.strip().removesuffix("ms"))
            except ValueError:
                bound = 0.0
            if not 0 < bound < float("inf"):
                raise ValueError(f"{value!r} is no time above 0 milliseconds")
            return cls(kind="p99", p99_ms=bound)
        if text == "throughput":
            return cls(kind="throughput")
        if text == "memory":
            return cls(kind="memory")
        raise ValueError(f"{text!r} is none of p99=MILLISECONDS, throughput and memory")

    def __str__(self) -> str:
        if self.kind == "p99":
            return f"the most pictures a second with a p99 of at most {self.p99_ms:g} ms"
        return {"throughput": "the most pictures a second", "memory": "the least memory"}[self.kind]


class Choice(Record):
    """What serves a model best: the case, what was measured of it, and why it was chosen.

    `drop_points` is the top-1 in points that it loses against fp32, below 0
    where it gains; None for fp32 where no accuracy was measured. `tied` are the
    cases that are as good, as far as the rounds can tell.
    """

    case: Case
    images_per_second: Amount
    p99_ms: Amount
    peak_memory_bytes: int
    drop_points: float | None
    tied: tuple[Case, ...]
    why: str


class Recommendation(Record):
    """The choices for an objective, a model each, and the models that nothing fits."""

    objective: Objective
    max_drop: Amount
    choices: tuple[Choice, ...]
    refusals: tuple[Refusal, ...] = ()

    @property
    def allowance(self) -> str:
        """What accuracy may be lost, in words."""
        return f"at most {_many(self.max_drop, 'point')} of top-1 lost against {REFERENCE}"

    def to_toml(self) -> str:
        """Return the file that `foveate serve --profile` takes."""
        lines = [f"# foveate bench: {self.objective}, {self.allowance}."]
        for choice in self.choices:
            case = choice.case
            values = {
                "variant": case.variant,
                "backend": case.backend,
                "device": case.device,
                "engine_threads": case.threads,
                "max_batch": case.batch,
            }
            lines += ["", f"# {choice.why}", f"[models.{json.dumps(case.model)}]"]
            # JSON writes such values as TOML does.
            lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> Path:
        """Write the profile into `folder` and return its path; raises OSError."""
        path = folder / PROFILE_FILE
        path.write_text(self.to_toml(), encoding="utf-8")
        return path


def recommend(
    measurements: Sequence[Measurement],
    accuracies: Sequence[Accuracy],
    objective: Objective,
    *,
    max_drop: float,
) -> Recommendation:
    """Choose for each model what serves the objective best of what was measured.

    Only plain predictions count. `max_drop` are the points of top-1 that may be
    lost against fp32; a variant whose accuracy was not measured is not chosen.
    Of those that tie, fp32 comes first, then the smaller batch, then fewer
    threads, then what loads faster.
    """
    choices, refusals = [], []
    for name in dict.fromkeys(m.case.model for m in measurements):
        measured = [m for m in measurements if m.case.model == name and m.case.outputs == "logits"]
        found = _choose(name, measured, accuracies, objective, max_drop)
        if isinstance(found, Choice):
            choices.append(found)
        else:
            refusals.append(found)
    return Recommendation(
        objective=objective,
        max_drop=max_drop,
        choices=tuple(choices),
        refusals=tuple(refusals),
    )


def _choose(
    model: Name,
    measured: Sequence[Measurement],
    accuracies: Sequence[Accuracy],
    objective: Objective,
    max_drop: float,
) -> Choice | Refusal:
    drops = {m.case: _drop(m.case, accuracies) for m in measured}
    accurate = [m for m in measured if _accurate(m.case, drops[m.case], max_drop)]
    if not accurate:
        return Refusal(
            what=f"a recommendation for {model}",
            reason=f"no variant is known to lose at most {_many(max_drop, 'point')} of top-1",
            remedy="foveate bench --data DIR measures the accuracy",
        )
    bound = objective.p99_ms
    fitting = [m for m in accurate if bound is None or m.latency.p99_ms <= bound]
    if not fitting:
        nearest = min(accurate, key=lambda m: m.latency.p99_ms)
        return Refusal(
            what=f"a recommendation for {model}",
            reason=f"the shortest p99 is {nearest.latency.p99_ms:.2f} ms, of {nearest.case}; "
            f"the limit is {bound:g} ms",
        )
    best, ties = _BEST[objective.kind](fitting)
    chosen = min([best, *ties], key=_plainness)
    tied = [m for m in (best, *ties) if m is not chosen]
    return Choice(
        case=chosen.case,
        images_per_second=chosen.images_per_second,
        p99_ms=chosen.latency.p99_ms,
        peak_memory_bytes=chosen.peak_memory_bytes,
        drop_points=drops[chosen.case],
        tied=tuple(m.case for m in tied),
        why=_why(chosen, tied, drops[chosen.case], len(fitting), objective),
    )


def _drop(case: Case, accuracies: Sequence[Accuracy]) -> float | None:
    """Return the points of top-1 lost against fp32 on the same backend; None where unknown."""

    def top1(variant: str) -> float | None:
        wanted = (case.model, case.version, variant, case.backend, case.device)
        for accuracy in accuracies:
            if wanted == (
                accuracy.model,
                accuracy.version,
                accuracy.variant,
                accuracy.backend,
                accuracy.device,
            ):
                return accuracy.top1
        return None

    own, reference = top1(case.variant), top1(REFERENCE)
    if own is None or reference is None:
        return None
    return 100 * (reference - own)


def _accurate(case: Case, drop: float | None, max_drop: float) -> bool:
    if drop is None:
        return case.variant == REFERENCE
    # Shares of a few hundred pictures are not exact in binary.
    return drop <= max_drop + 1e-9


def _fastest(measured: Sequence[Measurement]) -> tuple[Measurement, list[Measurement]]:
    best = max(measured, key=lambda m: m.images_per_second)
    return best, [m for m in measured if m is not best and _ties(m, best)]


def _smallest(measured: Sequence[Measurement]) -> tuple[Measurement, list[Measurement]]:
    best = min(measured, key=lambda m: m.peak_memory_bytes)
    limit = (1 + _SAME_MEMORY) * best.peak_memory_bytes
    return best, [m for m in measured if m is not best and m.peak_memory_bytes <= limit]


_Best = Callable[[Sequence[Measurement]], tuple[Measurement, list[Measurement]]]
_BEST: dict[str, _Best] = {"p99": _fastest, "throughput": _fastest, "memory": _smallest}


def _ties(first: Measurement, second: Measurement) -> bool:
    """Return whether neither had the higher throughput in every round; the rounds alternate."""
    pairs = [
        (first.case.batch / a, second.case.batch / b)
        for a, b in zip(first.round_medians_ms, second.round_medians_ms, strict=False)
    ]
    return not (all(a < b for a, b in pairs) or all(a > b for a, b in pairs))


def _plainness(measurement: Measurement) -> tuple[bool, int, int, float]:
    case = measurement.case
    return case.variant != REFERENCE, case.batch, case.threads, measurement.load_seconds


def _why(
    chosen: Measurement,
    tied: Sequence[Measurement],
    drop: float | None,
    fitting: int,
    objective: Objective,
) -> str:
    """Return the reason in one sentence, with its numbers."""
    facts = (
        f"{chosen.case} has {chosen.images_per_second:.1f} pictures a second, "
        f"a p99 of {chosen.latency.p99_ms:.2f} ms a run and "
        f"{chosen.peak_memory_bytes / 2**20:.0f} MiB"
    )
    what = "the least memory" if objective.kind == "memory" else "the most pictures a second"
    among = f"{what} of the {_many(fitting, 'case')}" + (
        f" with a p99 of at most {objective.p99_ms:g} ms" if objective.kind == "p99" else ""
    )
    if chosen.case.variant == REFERENCE or drop is None:
        accuracy = f"{REFERENCE} loses no accuracy"
    elif drop == 0:
        accuracy = f"its top-1 is {REFERENCE}'s"
    else:
        accuracy = f"its top-1 is {abs(drop):.2f} points {'above' if drop < 0 else 'below'} fp32's"
    if not tied:
        return f"{facts}, {among}; {accuracy}."
    names = "; ".join(str(m.case) for m in tied[:_NAMED])
    more = f"; and {len(tied) - _NAMED} more" if len(tied) > _NAMED else ""
    return f"{facts}; {accuracy}; it ties for {among} with {names}{more}, and is the plainest."


def _many(number: float, word: str) -> str:
    return f"{number:g} {word}" if number == 1 else f"{number:g} {word}s"
