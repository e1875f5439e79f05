"""How far each engine lies from what the machine could do: the roofline model.

The floor of a graph is the time of all its steps on a machine that multiplies
and copies as fast as was measured here: of each step the longer of its
operations over the peak of their type and its bytes over the copy's (Williams,
Waterman and Patterson 2009). It assumes that a step reads its input from memory
and writes its results there: where batches are small the caches keep them, and
an engine may be a little below the floor. Convolutions are counted as the plain
sum; an algorithm that multiplies less (Winograd's) may be below it, too.
"""

from collections.abc import Callable, Mapping, Sequence

from foveate_bench import peaks as peaks_module
from foveate_bench.counting import CountingError, GraphCost, Precision, count
from foveate_bench.peaks import Peaks
from foveate_bench.plan import output_names
from foveate_bench.results import Amount, Case, Measurement, Record, Refusal
from foveate_bench.worker import EXPLAINED
from foveate_runtime.bundle.bundle import Bundle


class Floor(Record):
    """What a case costs at least, and how far from it the engine is.

    Attributes:
        case: what was timed.
        multiply_adds: those of a batch, in each type.
        weight_bytes: the bytes of the weights, which are read once a batch.
        moved_bytes: those and the bytes of the tensors between the steps.
        compute_ms: the operations alone, at the peaks.
        memory_ms: the bytes alone, at the peak.
        floor_ms: the sum over the steps of the longer of the two.
        distance: the median of the runs, in floors.
    """

    case: Case
    multiply_adds: dict[Precision, int]
    weight_bytes: int
    moved_bytes: int
    compute_ms: Amount
    memory_ms: Amount
    floor_ms: Amount
    distance: Amount


class Roofline(Record):
    """The machine's peaks for each number of threads, and the floors of the cases."""

    peaks: tuple[Peaks, ...]
    floors: tuple[Floor, ...]

    def table(self) -> str:
        """Return the floors as a table of Markdown."""
        head = (
            "| case | G multiply-adds | MB moved | compute ms | memory ms | floor ms | distance |\n"
            "|---|---:|---:|---:|---:|---:|---:|"
        )
        rows = [
            f"| {floor.case} | {sum(floor.multiply_adds.values()) / 1e9:.3f} "
            f"| {floor.moved_bytes / 1e6:.1f} | {floor.compute_ms:.2f} | {floor.memory_ms:.2f} "
            f"| {floor.floor_ms:.2f} | {floor.distance:.1f}x |"
            for floor in self.floors
        ]
        return "\n".join([head, *rows])


def compute_seconds(cost: GraphCost, peaks: Peaks) -> float:
    """Return the time of the operations at the peaks of their types; two in a multiply-add."""
    return sum(
        2 * number / peaks.operations_per_second(precision)
        for precision, number in cost.multiply_adds.items()
    )


def floor_seconds(cost: GraphCost, peaks: Peaks) -> float:
    """Return the sum over the steps of the longer of compute and memory."""
    return sum(
        max(
            2 * step.multiply_adds / peaks.operations_per_second(step.precision),
            step.bytes / peaks.copy_bytes_per_second,
        )
        for step in cost.steps
    )


def run(
    measurements: Sequence[Measurement],
    bundles: Mapping[str, Bundle],
    *,
    measure: Callable[[int], Peaks] = peaks_module.measure,
) -> tuple[Roofline, list[Refusal]]:
    """Measure the machine's peaks and return each case's distance from its floor.

    `bundles` are those measured, by model. What has no floor is refused: cases
    on a GPU, whose peaks are not measured, and graphs that cannot be counted.
    Raises foveate_runtime.backends.base.BackendError where no engine is installed
    that can measure the peaks.
    """
    on_cpu = [m for m in measurements if m.case.device == "cpu"]
    refusals = [
        Refusal(what=f"roofline of {m.case}", reason="the peaks of a GPU are not measured")
        for m in measurements
        if m.case.device != "cpu"
    ]
    peaks = {n: measure(n) for n in sorted({m.case.threads for m in on_cpu})}
    costs: dict[tuple[str, str, str, int], GraphCost | None] = {}
    floors = []
    for measurement in on_cpu:
        case = measurement.case
        key = (case.model, case.variant, case.outputs, case.batch)
        if key not in costs:
            try:
                costs[key] = _cost(case, bundles[case.model])
            except CountingError as error:
                costs[key] = None
                what = f"roofline of {case.model} {case.variant}, {case.outputs}"
                refusals.append(Refusal(what=what, reason=str(error)))
        cost = costs[key]
        if cost is not None:
            floors.append(_floor(measurement, cost, peaks[case.threads]))
    return Roofline(peaks=tuple(peaks.values()), floors=tuple(floors)), refusals


def _cost(case: Case, bundle: Bundle) -> GraphCost:
    return count(
        bundle.file(case.variant),
        batch=case.batch,
        outputs=output_names(case.outputs, bundle.manifest),
        classes=min(EXPLAINED, bundle.manifest.classes),
    )


def _floor(measurement: Measurement, cost: GraphCost, peaks: Peaks) -> Floor:
    floor_ms = 1000 * floor_seconds(cost, peaks)
    return Floor(
        case=measurement.case,
        multiply_adds=cost.multiply_adds,
        weight_bytes=cost.weights,
        moved_bytes=cost.bytes,
        compute_ms=1000 * compute_seconds(cost, peaks),
        memory_ms=1000 * cost.bytes / peaks.copy_bytes_per_second,
        floor_ms=floor_ms,
        distance=measurement.latency.p50_ms / floor_ms,
    )
