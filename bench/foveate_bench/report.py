"""A benchmark's results as text: Markdown, from which the page is made as well."""

from collections.abc import Iterable, Iterator, Sequence
from math import floor, log10

from foveate_bench.document import Model, Report
from foveate_bench.plots import PLOTS
from foveate_bench.recommend import PROFILE_FILE
from foveate_bench.results import Case, Configuration, Measurement, OutputKind

TITLE = "# Backends, variants and batches, measured"

_KINDS: dict[OutputKind, str] = {
    "logits": "predictions alone",
    "cam": "with the maps of the five best classes",
    "features": "with a feature map",
}

_READING = """\
- *p50* and *p99* are of one run of a whole batch; decoding is not in them. Of few runs p99 lies
  close to the slowest; no run is left out.
- *=* stands beside what ties with the fastest, which is in bold: the rounds alternate, and in some
  the one was ahead and in some the other. All other differences showed in every round.
- *spread* is the largest round's median less the smallest, as a share of the median of all runs.
- *CPU* is the processor time of the engine's whole process for a picture. *memory* is the most that
  a process held that has loaded the engine and run this batch and smaller ones, without a GPU's.
- *load* leaves out the import of the engine's package. *first* is the first run in a new process.
  *build* is what building an engine from the graph took, where that is done."""


def to_markdown(report: Report) -> str:
    """Return the whole report; its pictures are named as the files beside it."""
    return "\n\n".join([TITLE, about(report), *summary(report), *details(report)]) + "\n"


def about(report: Report) -> str:
    """Return where and how it was measured, as a paragraph."""
    machine, settings = report.machine, report.settings
    gpus = f"; {', '.join(machine.gpus)}" if machine.gpus else ""
    packages = ", ".join(f"{name} {number}" for name, number in machine.packages.items())
    stopped = "" if report.complete else " It was stopped before its last round."
    return (
        f"{machine.processor}, {machine.cores} {_plural('core', machine.cores)}, "
        f"{machine.memory_gib:g} GiB{gpus}; {machine.system}, Python {machine.python}, {packages}. "
        f"Measured on {report.created:%Y-%m-%d}, the load average {report.load_average:.1f} at the "
        f"start: {settings.rounds} rounds of {settings.seconds:g} s a case, in another order each "
        f"round, every engine in a process of its own.{stopped}"
    )


def summary(report: Report, *, pictures: str = "") -> Iterator[str]:
    """Yield what most readers come for, model by model.

    `pictures` stands before the files' names, where the text lies elsewhere.
    """
    for model in report.models:
        yield f"## {model.name}"
        yield (
            f"{model.classifier}, {model.parameters / 1e6:.3g} million parameters, "
            f"{model.height} x {model.width} x {model.channels}, version {model.version}; "
            f"measured on {model.pictures}."
        )
        yield _overview(report, model)
    yield _READING
    for plot in PLOTS:
        if plot.has_something(report):
            yield f"![{plot.title}]({pictures}{plot.file})"
    yield "## The fastest of each question"
    yield _fastest(report)
    if report.accuracies:
        yield "## Accuracy"
        yield _accuracies(report)
    if report.refusals:
        yield "## Not measured"
        yield _table(
            ("what", "why", "what helps"),
            [(r.what, r.reason, r.remedy) for r in report.refusals],
        )


def details(report: Report) -> Iterator[str]:
    """Yield what was found out beside the times, and every case."""
    yield from _recommended(report)
    yield from _roofline(report)
    if report.loadgen:
        yield "## MLPerf's LoadGen"
        yield _loadgen(report)
    if report.operators:
        yield "## The slowest operators"
        for profile in report.operators:
            yield f"### {profile.case}"
            yield profile.table()
    yield "## All cases"
    for model in report.models:
        for kind, title in _KINDS.items():
            cases = [m for m in _of(report, model) if m.case.outputs == kind]
            if cases:
                yield f"### {model.name}, {title}"
                yield _cases(report, cases)


def verdicts(report: Report) -> Iterator[str]:
    """Yield a line for each question: what is the fastest, and what ties with it.

    Then one for each model of what is recommended, if anything is.
    """
    medians = {m.case: m.latency.p50_ms for m in report.measurements}
    for ties in report.ties:
        best = ties.fastest
        tied = f"; ties: {', '.join(map(_short, ties.tied))}" if ties.tied else ""
        yield (
            f"{best.model}, {best.outputs}, batch {best.batch}: {_short(best)}, "
            f"{_digits(medians[best])} ms{tied}"
        )
    if report.recommendation is not None:
        yield from (f"recommended: {choice.why}" for choice in report.recommendation.choices)
        yield from (f"{r.what}: {r.reason}" for r in report.recommendation.refusals)


def _overview(report: Report, model: Model) -> str:
    """Return a row for each configuration: its smallest batch, and its best one."""
    rows = []
    measured = _of(report, model)
    scored = {
        (a.variant, a.backend, a.device): a
        for a in report.accuracies
        if (a.model, a.version) == (model.name, model.version)
    }
    for configuration in dict.fromkeys(m.case.configuration for m in measured):
        own = [m for m in measured if m.case.configuration == configuration]
        lone = {kind: _smallest(m for m in own if m.case.outputs == kind) for kind in _KINDS}
        plain = lone["logits"]
        best = max(
            (m for m in own if m.case.outputs == "logits"),
            key=lambda m: m.images_per_second,
            default=None,
        )
        first = next(m for m in lone.values() if m is not None)
        accuracy = scored.get((configuration.variant, configuration.backend, configuration.device))
        cells = (
            *_name(configuration),
            *(_latency(report, lone[kind]) for kind in _KINDS),
            "" if plain is None else _digits(plain.latency.p99_ms),
            "" if best is None else f"{_digits(best.images_per_second)} ({best.case.batch})",
            _digits(1000 * first.cpu_seconds_per_image),
            _megabytes(first.peak_memory_bytes),
            _digits(first.load_seconds),
            "" if first.build_seconds is None else _digits(first.build_seconds),
            _digits(1000 * first.first_request_seconds),
            "" if accuracy is None else f"{accuracy.top1:.1%}",
        )
        rows.append((first.latency.p50_ms, cells))
    columns = (
        *_NAME,
        "p50, ms",
        "5 maps",
        "feature map",
        "p99, ms",
        "best images/s (batch)",
        "CPU, ms",
        "memory, MB",
        "load, s",
        "build, s",
        "first, ms",
        "top-1",
    )
    return _table(columns, [cells for _, cells in sorted(rows)], numbers_from=len(_NAME))


def _cases(report: Report, cases: Sequence[Measurement]) -> str:
    columns = (
        *_NAME,
        "batch",
        "p50, ms",
        "p90",
        "p95",
        "p99",
        "min",
        "max",
        "mean",
        "runs",
        "spread",
        "images/s",
        "CPU, ms",
        "memory, MB",
    )
    ordered = sorted(cases, key=lambda m: (m.case.batch, m.latency.p50_ms))
    rows = [
        (
            *_name(m.case),
            str(m.case.batch),
            _latency(report, m),
            *(
                _digits(value)
                for value in (
                    m.latency.p90_ms,
                    m.latency.p95_ms,
                    m.latency.p99_ms,
                    m.latency.min_ms,
                    m.latency.max_ms,
                    m.latency.mean_ms,
                )
            ),
            str(m.latency.runs),
            f"{m.spread:.0%}",
            _digits(m.images_per_second),
            _digits(1000 * m.cpu_seconds_per_image),
            _megabytes(m.peak_memory_bytes),
        )
        for m in ordered
    ]
    return _table(columns, rows, numbers_from=len(_NAME))


def _fastest(report: Report) -> str:
    by_case = {m.case: m for m in report.measurements}
    rows = [
        (
            ties.fastest.model,
            ties.fastest.outputs,
            str(ties.fastest.batch),
            _short(ties.fastest),
            _digits(by_case[ties.fastest].latency.p50_ms),
            "; ".join(_short(case) for case in ties.tied) or "none",
        )
        for ties in report.ties
    ]
    return _table(("model", "outputs", "batch", "fastest", "p50, ms", "ties with it"), rows)


def _accuracies(report: Report) -> str:
    rows = [
        (a.model, a.variant, a.backend, a.device, f"{a.top1:.2%}", f"{a.top5:.2%}",
         f"{a.images} of {a.data}")
        for a in report.accuracies
    ]  # fmt: skip
    return _table(("model", "variant", "backend", "device", "top-1", "top-5", "pictures"), rows)


def _recommended(report: Report) -> Iterator[str]:
    found = report.recommendation
    if found is None:
        return
    yield "## Recommended"
    yield f"For {found.objective}, {found.allowance}:"
    lines = [f"- {choice.why}" for choice in found.choices]
    lines += [f"- {refusal.what}: {refusal.reason}" for refusal in found.refusals]
    yield "\n".join(lines)
    if found.choices:
        yield f"`foveate serve --profile {PROFILE_FILE}` takes it."


def _roofline(report: Report) -> Iterator[str]:
    found = report.roofline
    if found is None:
        return
    yield "## The roofline"
    lines = []
    for peaks in found.peaks:
        products = ", ".join(
            f"{_digits(p.operations_per_second / 1e9)} G operations/s {p.precision} ({p.backend})"
            for p in peaks.products
        )
        lines.append(
            f"- {peaks.threads} {_plural('thread', peaks.threads)}: {products}; memory copies "
            f"{_digits(peaks.copy_bytes_per_second / 1e9)} GB/s"
        )
    yield "\n".join(lines)
    yield (
        "The floor is the time that the graph's operations and bytes take at these peaks; the "
        "distance is how many times longer the engine takes."
    )
    yield found.table()


def _loadgen(report: Report) -> str:
    rows = [
        (
            str(r.configuration),
            r.target,
            r.scenario.value,
            f"{_digits(r.value)} {r.unit}",
            r.metric,
            "valid" if r.valid else f"not valid: {'; '.join(r.reasons)}",
            str(r.queries),
            _digits(r.p50_ms),
            _digits(r.p99_ms),
        )
        for r in report.loadgen
    ]
    columns = (
        "engine",
        "where",
        "scenario",
        "result",
        "of",
        "verdict",
        "queries",
        "p50, ms",
        "p99",
    )
    return _table(columns, rows)


_NAME = ("backend", "variant", "device", "threads")


def _name(configuration: Configuration) -> tuple[str, ...]:
    return (
        configuration.backend,
        configuration.variant,
        configuration.device,
        str(configuration.threads),
    )


def _short(case: Case) -> str:
    return (
        f"{case.backend} {case.variant} ({case.device}, {case.threads} "
        f"{_plural('thread', case.threads)})"
    )


def _latency(report: Report, measurement: Measurement | None) -> str:
    """Return the median, marked where it is the fastest or ties with it."""
    if measurement is None:
        return ""
    text = _digits(measurement.latency.p50_ms)
    if any(measurement.case == ties.fastest for ties in report.ties):
        return f"**{text}**"
    return f"{text} =" if any(measurement.case in ties.tied for ties in report.ties) else text


def _of(report: Report, model: Model) -> list[Measurement]:
    key = model.name, model.version
    return [m for m in report.measurements if (m.case.model, m.case.version) == key]


def _smallest(measurements: Iterable[Measurement]) -> Measurement | None:
    return min(measurements, key=lambda m: m.case.batch, default=None)


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int | None = None
) -> str:
    """Return a table; its columns are set to the right from one on."""
    first = len(columns) if numbers_from is None else numbers_from
    marks = ["---" if index < first else "---:" for index in range(len(columns))]
    lines = (columns, marks, *rows)
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _digits(value: float) -> str:
    """Return a number with three digits, or more before the point."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - floor(log10(abs(value))))}f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
