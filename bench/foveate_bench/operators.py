"""Which operators a run spends its time on, in one form for every backend."""

from collections.abc import Mapping, Sequence
from typing import Self

from foveate_bench.results import Amount, Case, Record
from foveate_runtime.backends.base import Array, OperatorTime, Runner
from foveate_runtime.bundle.manifest import Positive, Share

SLOWEST = 10

WARM_UP, RUNS = 5, 20


class Operator(Record):
    """One operator: its calls and milliseconds in one run, and its share of all operators' time.

    `name` and `type` are the engine's: it merges nodes of the graph, and adds
    some that bring tensors into another order.
    """

    name: str
    type: str
    calls: Amount
    milliseconds: Amount
    share: Share


class Profile(Record):
    """The slowest operators of a case, the slowest first, and the time of all that there are.

    An engine that times its operators is a little slower, so the
    sum is no latency.
    """

    case: Case
    runs: Positive
    operators: tuple[Operator, ...]
    all_operators: Positive
    all_milliseconds: Amount

    @classmethod
    def of(cls, case: Case, times: Sequence[OperatorTime], *, runs: int) -> Self:
        """Return the profile of the times that `runs` runs took."""
        total = sum(time.seconds for time in times)
        slowest = sorted(times, key=lambda time: time.seconds, reverse=True)[:SLOWEST]
        return cls(
            case=case,
            runs=runs,
            operators=tuple(
                Operator(
                    name=time.name,
                    type=time.operator,
                    calls=time.calls / runs,
                    milliseconds=1000 * time.seconds / runs,
                    share=time.seconds / total if total else 0.0,
                )
                for time in slowest
            ),
            all_operators=len(times),
            all_milliseconds=1000 * total / runs,
        )

    def table(self) -> str:
        """Return the operators as a table of Markdown."""
        head = ["| operator | type | calls | ms a run | share |", "|---|---|---:|---:|---:|"]
        rows = [
            f"| {o.name} | {o.type} | {o.calls:g} | {o.milliseconds:.3f} | {o.share:.1%} |"
            for o in self.operators
        ]
        return "\n".join([*head, *rows])


def profile(
    runner: Runner,
    case: Case,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    *,
    warm_up: int = WARM_UP,
    runs: int = RUNS,
) -> Profile:
    """Profile runs of `outputs` on a batch; raises BackendError where the backend cannot."""
    times = runner.profile(inputs, outputs, warm_up=warm_up, runs=runs)
    return Profile.of(case, times, runs=runs)
