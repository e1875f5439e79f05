"""An evaluation as one HTML file that needs nothing else."""

from collections.abc import Sequence
from html import escape

from foveate_client.batch.evaluation import TOP, Bin, Evaluation, direction

_SIDE = 280
_LEFT, _TOP, _RIGHT, _BOTTOM = 48, 12, 12, 40
_GREY = "#9aa0a6"

_CALIBRATION_NOTE = (
    "Bars show the accuracy of the pictures whose best score falls into a bin, and dots their "
    "mean score; on the diagonal the two are equal. The calibration error is their mean "
    "distance, weighted by the pictures of a bin."
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #202124; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.note { color: #5f6368; }
table { border-collapse: collapse; }
th, td { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top; }
th { color: #5f6368; font-weight: normal; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
dl { display: flex; gap: 2.5rem; } dt { color: #5f6368; }
dd { margin: 0; font-size: 1.6rem; font-variant-numeric: tabular-nums; }
svg text { font: 11px system-ui, sans-serif; fill: #5f6368; }
"""


def render(evaluation: Evaluation, labels: Sequence[str], *, model: str, version: str) -> str:
    """Return the report of `model` as HTML; `labels` are its labels by class id."""
    title = f"{model}, version {version}"
    figures = {
        "images": f"{evaluation.images:,}",
        "top 1": f"{evaluation.top1:.2%}",
    }
    if len(labels) > TOP:
        figures["top 5"] = f"{evaluation.top5:.2%}"
    if evaluation.ece is not None:
        figures["calibration error"] = f"{evaluation.ece:.2%}"
    if evaluation.ece_calibrated is not None:
        figures["after calibration"] = f"{evaluation.ece_calibrated:.2%}"
    if evaluation.sets is not None:
        figures[f"in the set for {evaluation.sets.coverage:g}"] = f"{evaluation.sets.covered:.2%}"
        figures["classes a set"] = f"{evaluation.sets.mean_size:.2f}"
        figures["abstained"] = f"{evaluation.sets.abstained:.2%}"
    confusions = _table(
        ("right class", "taken for", "images"),
        [(labels[x.target], labels[x.predicted], f"{x.images:,}") for x in evaluation.confusions],
    )
    form = ".4g" if evaluation.scores == "none" else ".1%"
    mistakes = _table(
        ("image", "right class", "taken for", "score"),
        [
            (x.image, labels[x.target], labels[x.predicted], format(x.score, form))
            for x in evaluation.mistakes
        ],
    )
    bins = _table(
        ("score", "images", "mean score", "accuracy"),
        [
            (
                f"{x.lower:.2f} to {x.upper:.2f}",
                f"{x.images:,}",
                f"{x.confidence:.1%}",
                f"{x.accuracy:.1%}",
            )
            for x in evaluation.bins
            if x.images
        ],
        words=1,
    )
    calibration = [
        "<h2>Calibration</h2>",
        f'<p class="note">{_CALIBRATION_NOTE}</p>',
        f"<p>The {direction(evaluation)}.</p>",
        _reliability(evaluation.bins, "best score"),
        bins,
    ]
    if evaluation.calibrated_bins:
        calibration += [
            "<h2>After calibration</h2>",
            _reliability(evaluation.calibrated_bins, "confidence"),
        ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            "<dl>",
            *(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items()),
            "</dl>",
            *(calibration if evaluation.ece is not None else []),
            "<h2>Accuracy by class, the least first</h2>",
            _table(
                ("class", "images", "right", "accuracy"),
                [
                    (labels[x.target], f"{x.images:,}", f"{x.right:,}", f"{x.accuracy:.1%}")
                    for x in evaluation.classes
                ],
                words=1,
            ),
            "<h2>Most confused classes</h2>",
            confusions,
            "<h2>Mistakes with the highest scores</h2>",
            mistakes,
            "</body></html>",
            "",
        ]
    )


def _table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], *, words: int | None = None
) -> str:
    """Return a table whose first `words` columns are text; unset, all but the last."""
    if not rows:
        return '<p class="note">None.</p>'
    words = len(heading) - 1 if words is None else words
    kinds = ["" if column < words else ' class="number"' for column in range(len(heading))]
    lines = ["<table>", _cells("th", heading, kinds)]
    lines += [_cells("td", row, kinds) for row in rows]
    return "\n".join([*lines, "</table>"])


def _cells(tag: str, values: Sequence[str], kinds: Sequence[str]) -> str:
    cells = (
        f"<{tag}{kind}>{escape(value)}</{tag}>" for value, kind in zip(values, kinds, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"


def _reliability(bins: Sequence[Bin], axis: str) -> str:
    """Return a reliability diagram as SVG."""
    dashes = f'stroke="{_GREY}" stroke-dasharray="4 4"'
    shapes = [f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" {dashes}/>']
    for found in bins:
        if found.images:
            shapes += [_bar(found), _dot(found)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        shapes += [
            _caption(_x(tick), _y(0) + 16, f"{tick:g}"),
            _caption(_x(0) - 8, _y(tick) + 4, f"{tick:g}", anchor="end"),
        ]
    shapes += [
        _caption(_x(0.5), _y(0) + 34, axis),
        f'<g transform="translate(12 {_y(0.5)}) rotate(-90)">{_caption(0, 0, "accuracy")}</g>',
        _box(_x(0), _y(1), _SIDE, _SIDE, f'fill="none" stroke="{_GREY}"'),
    ]
    width, height = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="reliability diagram">'
        f"{''.join(shapes)}</svg>"
    )


def _bar(found: Bin) -> str:
    note = (
        f"{found.images:,} images: accuracy {found.accuracy:.1%}, mean score {found.confidence:.1%}"
    )
    width = _SIDE * (found.upper - found.lower) - 1
    bar = _box(_x(found.lower), _y(found.accuracy), width, _SIDE * found.accuracy, 'fill="#8ab4f8"')
    return f"<g>{bar}<title>{note}</title></g>"


def _dot(found: Bin) -> str:
    middle = _x((found.lower + found.upper) / 2)
    return f'<circle cx="{middle:.1f}" cy="{_y(found.confidence):.1f}" r="3" fill="#174ea6"/>'


def _box(x: float, y: float, width: float, height: float, paint: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {paint}/>'


def _caption(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _x(share: float) -> float:
    return _LEFT + _SIDE * share


def _y(share: float) -> float:
    return _TOP + _SIDE * (1 - share)
