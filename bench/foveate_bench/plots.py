"""The charts of a benchmark, drawn by matplotlib."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from foveate_bench.document import Model, Report
from foveate_bench.results import Accuracy, Configuration, Measurement, OutputKind

_INK, _FAINT, _GRID = "#22303c", "#7b8894", "#e6e9ec"
_COLOURS = ("#4c78a8", "#e45756", "#54a24b", "#f58518", "#b279a2", "#17a2b8", "#9d755d", "#7f8c99")
_DASHES = ("-", (0, (5, 2)), (0, (1, 2)), "-.")
_MARKS = "osD^vPX*"

_TITLES: dict[OutputKind, str] = {
    "logits": "predictions alone",
    "cam": "with five maps",
    "features": "with a feature map",
}

_POINTS_PER_MILLION = 22
"""A mark's area in square points for a million parameters."""
_SMALLEST_AREA = 12


@dataclass(frozen=True)
class Plot:
    """One chart: its file, what it shows, and how it is drawn."""

    file: str
    title: str
    draw: Callable[[Report], Figure]
    has_something: Callable[[Report], bool]


def draw_plots(report: Report, folder: Path) -> None:
    """Write the charts that there is something to show in; raises OSError."""
    for plot in PLOTS:
        if plot.has_something(report):
            plot.draw(report).savefig(folder / plot.file, dpi=130, facecolor="white")


def _latency(report: Report) -> Figure:
    """Draw the median against the batch: a row of axes for each model, a column for each output."""
    kinds = [k for k in _TITLES if any(m.case.outputs == k for m in report.measurements)]
    models = report.models
    figure = _figure(len(kinds), len(models))
    grid = figure.subplots(len(models), len(kinds), squeeze=False, sharey="row")
    for row, model in zip(grid, models, strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            for configuration, points in _curves(report, model, kind):
                axes.plot(
                    [m.case.batch for m in points],
                    [m.latency.p50_ms for m in points],
                    marker="o",
                    markersize=4,
                    **_style(report, configuration),
                )
            _log_axes(axes, sorted({m.case.batch for m in report.measurements}))
            axes.set_title(f"{model.name}, {_TITLES[kind]}", fontsize=10, color=_INK)
            axes.set_xlabel("batch", color=_INK)
        row[0].set_ylabel("milliseconds a batch, median", color=_INK)
    _add_legend(figure, report)
    return figure


def _throughput(report: Report) -> Figure:
    """Draw pictures a second against p99, a curve over the batches for each configuration."""
    kind: OutputKind = "logits"
    figure = _figure(len(report.models), 1, width=5.4)
    grid = figure.subplots(1, len(report.models), squeeze=False)[0]
    for axes, model in zip(grid, report.models, strict=True):
        for configuration, points in _curves(report, model, kind):
            style = _style(report, configuration)
            x = [m.latency.p99_ms for m in points]
            y = [m.images_per_second for m in points]
            axes.plot(x, y, marker="o", markersize=4, **style)
            for point, left, up in zip(points, x, y, strict=True):
                axes.annotate(
                    str(point.case.batch),
                    (left, up),
                    xytext=(0, 5),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                    color=style["color"],
                )
        _log_axes(axes, None)
        axes.set_title(f"{model.name}, {_TITLES[kind]}", fontsize=10, color=_INK)
        axes.set_xlabel("99th percentile of a batch's latency, milliseconds", color=_INK)
    grid[0].set_ylabel("pictures a second", color=_INK)
    _add_legend(figure, report, note="the numbers are batches")
    return figure


def _accuracy(report: Report) -> Figure:
    """Draw top-1 against the latency of one picture; areas are parameters, marks backends.

    After Canziani et al., An analysis of deep neural network models for
    practical applications, 2017, whose horizontal axis counts operations.
    """
    figure = Figure(figsize=(9.5, 5.8), layout="constrained")
    axes = figure.subplots()
    sized = {(model.name, model.version): model for model in report.models}
    backends = list(dict.fromkeys(_engine(accuracy) for accuracy, _ in _scored(report)))
    variants = list(dict.fromkeys((a.model, a.variant) for a, _ in _scored(report)))
    for accuracy, measurement in _scored(report):
        model = sized[accuracy.model, accuracy.version]
        axes.scatter(
            measurement.latency.p50_ms,
            100 * accuracy.top1,
            s=_area(model.parameters),
            marker=_MARKS[backends.index(_engine(accuracy)) % len(_MARKS)],
            color=_COLOURS[variants.index((accuracy.model, accuracy.variant)) % len(_COLOURS)],
            alpha=0.65,
            linewidths=0.8,
            edgecolors="white",
        )
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.margins(x=0.12, y=0.2)
    _clean(axes)
    axes.set_xlabel("milliseconds for one picture, median", color=_INK, labelpad=8)
    axes.set_ylabel("top-1 accuracy, percent", color=_INK, labelpad=8)
    marks = [
        Line2D([], [], linestyle="", marker=_MARKS[i % len(_MARKS)], color=_FAINT, label=name)
        for i, name in enumerate(backends)
    ]
    colours = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            color=_COLOURS[i % len(_COLOURS)],
            label=f"{model} {variant}",
        )
        for i, (model, variant) in enumerate(variants)
    ]
    sizes = [
        axes.scatter([], [], s=_area(m.parameters), color=_FAINT, alpha=0.4, linewidths=0,
                     label=f"{m.name}: {m.parameters / 1e6:.3g} million parameters")
        for m in report.models
    ]  # fmt: skip
    figure.legend(
        handles=[*colours, *marks, *sizes],
        loc="outside right upper",
        frameon=False,
        labelcolor=_INK,
        fontsize=8,
        labelspacing=1.1,
    )
    return figure


def _scored(report: Report) -> Iterator[tuple[Accuracy, Measurement]]:
    """Yield each accuracy with the fastest measurement of one picture's predictions."""
    for accuracy in report.accuracies:
        own = [
            m
            for m in report.measurements
            if m.case.outputs == "logits"
            and m.case.batch == 1
            and all(
                getattr(m.case, name) == getattr(accuracy, name)
                for name in ("model", "version", "variant", "backend", "device")
            )
        ]
        if own:
            yield accuracy, min(own, key=lambda m: m.latency.p50_ms)


def _curves(
    report: Report, model: Model, kind: OutputKind
) -> Iterator[tuple[Configuration, list[Measurement]]]:
    found: dict[Configuration, list[Measurement]] = {}
    for m in report.measurements:
        if (m.case.model, m.case.version, m.case.outputs) == (model.name, model.version, kind):
            found.setdefault(m.case.configuration, []).append(m)
    for configuration, points in found.items():
        yield configuration, sorted(points, key=lambda m: m.case.batch)


def _style(report: Report, configuration: Configuration) -> dict[str, Any]:
    """Return a backend's colour, a variant's dashes, and a fainter line for fewer threads.

    They are the same in every chart of a report.
    """
    cases = [m.case for m in report.measurements]
    engines = list(dict.fromkeys(map(_engine, cases)))
    variants = list(dict.fromkeys(case.variant for case in cases))
    threads = sorted({case.threads for case in cases if case.device == configuration.device})
    return {
        "color": _COLOURS[engines.index(_engine(configuration)) % len(_COLOURS)],
        "linestyle": _DASHES[variants.index(configuration.variant) % len(_DASHES)],
        "linewidth": 1.6,
        "alpha": (1 + threads.index(configuration.threads)) / len(threads),
    }


def _engine(of: Configuration | Accuracy) -> str:
    return of.backend if of.device == "cpu" else f"{of.backend}, {of.device}"


def _figure(columns: int, rows: int, *, width: float = 4.2) -> Figure:
    return Figure(figsize=(1.8 + width * columns, 0.4 + 3.7 * rows), layout="constrained")


def _add_legend(figure: Figure, report: Report, *, note: str = "") -> None:
    found = dict.fromkeys(m.case.configuration for m in report.measurements)
    lines = {}
    for configuration in found:
        threads = {c.threads for c in found if c.backend == configuration.backend}
        name = f"{_engine(configuration)} {configuration.variant}"
        if len(threads) > 1:
            name += f", {configuration.threads} threads"
        lines[name] = Line2D([], [], label=name, **_style(report, configuration))
    figure.legend(
        handles=list(lines.values()),
        title=note or None,
        title_fontsize=8,
        loc="outside right upper",
        frameon=False,
        labelcolor=_INK,
        fontsize=8,
        handlelength=3,
    )


def _log_axes(axes: Axes, batches: Sequence[int] | None) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    if batches is None:
        _plain_numbers(axes.xaxis)
    else:
        axes.xaxis.set_major_locator(FixedLocator(list(batches)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    _clean(axes)


def _plain_numbers(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _clean(axes: Axes) -> None:
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=_INK, labelsize=8)


def _area(parameters: float) -> float:
    return max(_SMALLEST_AREA, _POINTS_PER_MILLION * parameters / 1e6)


PLOTS = (
    Plot(
        "latency.png",
        "Latency against batch",
        _latency,
        lambda report: bool(report.measurements),
    ),
    Plot(
        "throughput.png",
        "Throughput against the 99th percentile of the latency",
        _throughput,
        lambda report: any(m.case.outputs == "logits" for m in report.measurements),
    ),
    Plot(
        "accuracy.png",
        "Accuracy against latency",
        _accuracy,
        lambda report: any(_scored(report)),
    ),
)
"""The charts, in the order of a report."""
