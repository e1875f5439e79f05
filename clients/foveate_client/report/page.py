"""The page of a report: HTML with its style and script, which loads nothing from elsewhere.

A policy in the page (CSP) allows this one script and no other. A label or a file name
that escaped its quotation marks would therefore not run.
"""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from foveate_client.batch.evaluation import TOP, Evaluation, direction
from foveate_client.report import diagrams, tiles
from foveate_client.report.entries import MOST, SCORES, Entry, Fault

_MEMBERS = 10
"""Of a prediction set; the others are counted."""

_FAULTS = 1_000
"""Pictures without an answer that are listed; the others are counted."""

_DIGITS = 5

_CALIBRATION_NOTE = (
    "Bars show the accuracy of the pictures whose best score falls into a bin, and dots their "
    "mean score; on the diagonal the two are equal. The calibration error is their mean "
    "distance, weighted by the pictures of a bin."
)


@dataclass(frozen=True, kw_only=True)
class Heading:
    """The model of a report, with its labels by class id and the kind of its scores."""

    model: str
    version: str
    labels: Sequence[str]
    scores: str

    @property
    def title(self) -> str:
        """The model and its version."""
        return f"{self.model}, version {self.version}"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The pictures of a page, in their order, and the places of their tiles.

    `left_out` more pictures are in no list. `sheets` are the addresses of the sheets of
    `report.tiles`; `places` hold, for each picture, the number of its first tile, the width
    and height of its tiles, and the class of each; None where it has no tiles.
    """

    entries: Sequence[Entry]
    left_out: int
    faults: Sequence[Fault]
    sheets: Sequence[str]
    places: Sequence[tuple[int, int, int, Sequence[int]] | None]


def render(
    heading: Heading,
    evaluation: Evaluation | None,
    shown: Shown | None = None,
    figures: Mapping[str, str] | None = None,
) -> str:
    """Return the page.

    `evaluation` is None where no right class is known, and `figures` are shown beside its
    own. Without `shown` there is no list of pictures, and no script.
    """
    parts = [f"<h1>{escape(heading.title)}</h1>", _figures(heading, evaluation, shown, figures)]
    if evaluation is not None:
        parts += _evaluated(heading, evaluation, shown)
    if shown is not None:
        parts += _listed(heading, shown)
    style = _resource("page.css")
    script = "" if shown is None else _resource("page.js")
    policy = [
        "default-src 'none'",
        f"style-src '{_digest(style)}'",
        # `self` means nothing to a page that is opened as a file.
        "img-src data: 'self' file:",
        *([f"script-src '{_digest(script)}'"] if script else []),
    ]
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(heading.title)}</title><style>{style}</style></head><body>",
        *parts,
    ]
    if shown is not None:
        data = _quoted(_data(heading, shown))
        lines += [
            f'<script type="application/json" id="data">{data}</script>',
            f"<script>{script}</script>",
        ]
    return "\n".join([*lines, "</body></html>", ""])


@cache
def _resource(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _quoted(value: object) -> str:
    """Return JSON in which no HTML parser finds the end of its element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _figures(
    heading: Heading,
    evaluation: Evaluation | None,
    shown: Shown | None,
    more: Mapping[str, str] | None,
) -> str:
    figures: dict[str, str] = {}
    if shown is not None:
        figures["pictures"] = f"{len(shown.entries) + shown.left_out:,}"
        if shown.faults:
            figures["without an answer"] = f"{len(shown.faults):,}"
    if evaluation is not None:
        figures["labelled"] = f"{evaluation.images:,}"
        figures["top 1"] = f"{evaluation.top1:.2%}"
        if len(heading.labels) > TOP:
            figures["top 5"] = f"{evaluation.top5:.2%}"
        if evaluation.ece is not None:
            figures["calibration error"] = f"{evaluation.ece:.2%}"
        if evaluation.ece_calibrated is not None:
            figures["after calibration"] = f"{evaluation.ece_calibrated:.2%}"
        if evaluation.sets is not None:
            sets = evaluation.sets
            figures[f"in the set for {sets.coverage:g}"] = f"{sets.covered:.2%}"
            figures["classes a set"] = f"{sets.mean_size:.2f}"
            figures["abstained"] = f"{sets.abstained:.2%}"
    figures |= more or {}
    cells = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in figures.items()
    )
    return f"<dl>{''.join(cells)}</dl>"


def _evaluated(heading: Heading, evaluation: Evaluation, shown: Shown | None) -> Iterator[str]:
    clicks = shown is not None
    yield '<div class="diagrams">'
    if shown is not None:
        yield from _confused(heading, shown.entries)
    if evaluation.ece is not None:
        yield "<section><h2>Calibration</h2>"
        yield f"<p>The {direction(evaluation)}.</p>"
        yield diagrams.reliability(evaluation.bins, "best score", "score")
        yield "</section>"
    if evaluation.calibrated_bins:
        yield "<section><h2>After calibration</h2>"
        yield diagrams.reliability(evaluation.calibrated_bins, "confidence", "confidence")
        yield "</section>"
    yield "</div>"
    if evaluation.ece is not None:
        click = " A click on a bar shows its pictures." if clicks else ""
        yield f'<p class="note">{_CALIBRATION_NOTE}{click}</p>'
    yield from _details("Accuracy by class, the least first", _classes(heading, evaluation, clicks))
    if not clicks:
        yield from _summaries(heading, evaluation)


def _confused(heading: Heading, entries: Sequence[Entry]) -> Iterator[str]:
    pairs = Counter(entry.pair for entry in entries)
    known = {pair: images for pair, images in pairs.items() if pair is not None}
    if not any(target != found for target, found in known):
        return
    yield "<section><h2>Confusions</h2>"
    note = "Rows are the right classes, columns those that the pictures were taken for."
    if diagrams.leaves_out(known):
        most = diagrams.MOST_CLASSES
        note += f" Shown are the classes that are confused, at most {most}."
    yield f'<p class="note">{note} A click on a number shows its pictures.</p>'
    yield diagrams.matrix(known, heading.labels)
    yield "</section>"


def _details(title: str, content: str) -> Iterator[str]:
    yield f"<details><summary>{title}</summary>{content}</details>"


def _classes(heading: Heading, evaluation: Evaluation, clicks: bool) -> str:
    rows = []
    for each in evaluation.classes:
        label = escape(heading.labels[each.target])
        name = (
            f'<button type="button" data-target="{each.target}">{label}</button>'
            if clicks
            else label
        )
        rows.append((name, f"{each.images:,}", f"{each.right:,}", f"{each.accuracy:.1%}"))
    return _table(("class", "images", "right", "accuracy"), rows, words=1)


def _summaries(heading: Heading, evaluation: Evaluation) -> Iterator[str]:
    labels = [escape(label) for label in heading.labels]
    yield "<h2>Most confused classes</h2>"
    yield _table(
        ("right class", "taken for", "images"),
        [(labels[x.target], labels[x.predicted], f"{x.images:,}") for x in evaluation.confusions],
        words=2,
    )
    form = ".4g" if evaluation.scores == "none" else ".1%"
    yield "<h2>Mistakes with the highest scores</h2>"
    yield _table(
        ("image", "right class", "taken for", "score"),
        [
            (escape(x.image), labels[x.target], labels[x.predicted], format(x.score, form))
            for x in evaluation.mistakes
        ],
        words=3,
    )


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """Return a table of cells in HTML, whose first `words` columns are text."""
    if not rows:
        return '<p class="note">None.</p>'
    kinds = ["" if column < words else ' class="number"' for column in range(len(heading))]
    lines = ["<table>", _cells("th", heading, kinds)]
    lines += [_cells("td", row, kinds) for row in rows]
    return "\n".join([*lines, "</table>"])


def _cells(tag: str, values: Sequence[str], kinds: Sequence[str]) -> str:
    cells = (f"<{tag}{kind}>{value}</{tag}>" for value, kind in zip(values, kinds, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _listed(heading: Heading, shown: Shown) -> Iterator[str]:
    if shown.faults:
        faults = [(escape(x.name), escape(x.reason)) for x in shown.faults[:_FAULTS]]
        table = _table(("image", "why"), faults, words=2)
        more = len(shown.faults) - len(faults)
        rest = f'<p class="note">And {more:,} more.</p>' if more else ""
        yield from _details("Pictures without an answer", table + rest)
    yield "<h2>Pictures</h2>"
    if shown.left_out:
        yield (
            f'<p class="note">The first {MOST:,} are shown, the worst mistakes first; '
            f"{shown.left_out:,} more are in the table alone.</p>"
        )
    yield _filters(heading, shown)
    yield '<p id="nothing" class="note" hidden>No picture is like that.</p>'
    yield '<div id="list"></div>'


def _filters(heading: Heading, shown: Shown) -> str:
    trusts = [entry.trust for entry in shown.entries if entry.trust is not None]
    known = any(entry.targets is not None for entry in shown.entries)
    outcomes = {"": "all"}
    orders = {}
    if known:
        outcomes |= {"wrong": "mistakes", "right": "right"}
        orders["worst"] = "worst mistakes first"
    if any(entry.targets is None for entry in shown.entries) and known:
        outcomes["unknown"] = "right class not known"
    if trusts:
        outcomes["abstained"] = "the model abstained"
    orders |= {"doubt": "lowest score first", "score": "highest score first"}
    if trusts:
        orders |= {"ood": "most unusual first", "set": "largest set first"}
    orders["name"] = "by name"
    unit = "" if heading.scores == "none" else ", %"
    parts = [
        _select("show", "outcome", outcomes),
        _select("right class", "target", {"": "any"}),
        _select("taken for", "found", {"": "any"}),
        _range(f"best score{unit}", "score"),
    ]
    if any(trust.confidence is not None for trust in trusts):
        parts.append(_range("confidence, %", "confidence"))
    if trusts:
        parts += [_range("more unusual than, %", "ood"), _range("classes in the set", "set")]
    parts += [
        '<label>name holds<input name="name" type="search" autocomplete="off"></label>',
        _select("order", "order", orders),
        '<button type="reset">Reset</button>',
        '<span id="count" role="status"></span>',
    ]
    return f'<form id="filters" autocomplete="off">{"".join(parts)}</form>'


def _select(title: str, name: str, options: Mapping[str, str]) -> str:
    items = "".join(f'<option value="{value}">{text}</option>' for value, text in options.items())
    return f'<label>{title}<select name="{name}">{items}</select></label>'


def _range(title: str, name: str) -> str:
    low, high = (
        f'<input name="{name}-{end}" type="number" step="any" aria-label="{title}, {end}">'
        for end in ("least", "most")
    )
    return f"<fieldset><legend>{title}</legend><div>{low}&ndash;{high}</div></fieldset>"


def _data(heading: Heading, shown: Shown) -> dict[str, Any]:
    """Return the data of the script: a list for each column."""
    entries = shown.entries
    trusts = [entry.trust for entry in entries]
    has_trust = any(trusts)
    has_confidence = any(trust is not None and trust.confidence is not None for trust in trusts)
    return {
        "labels": list(heading.labels),
        "scores": heading.scores,
        "names": [entry.name for entry in entries],
        "targets": [None if x.targets is None else list(x.targets) for x in entries],
        "found": [list(entry.found) for entry in entries],
        "wrong": [None if entry.wrong is None else int(entry.wrong) for entry in entries],
        "classes": [list(entry.class_ids[:SCORES]) for entry in entries],
        "values": [[_short(each) for each in entry.scores[:SCORES]] for entry in entries],
        "confidence": [None if x is None else _short(x.confidence) for x in trusts]
        if has_confidence
        else None,
        "ood": [None if x is None else _short(x.ood_percentile) for x in trusts]
        if has_trust
        else None,
        "setSizes": [None if x is None else len(x.prediction_set) for x in trusts]
        if has_trust
        else None,
        "sets": [[] if x is None else list(x.prediction_set[:_MEMBERS]) for x in trusts]
        if has_trust
        else None,
        "abstained": [None if x is None else int(x.abstained) for x in trusts]
        if has_trust
        else None,
        "tiles": list(shown.places),
        "sheets": {
            "columns": tiles.COLUMNS,
            "rows": tiles.ROWS,
            "side": tiles.SIDE,
            "files": list(shown.sheets),
        }
        if shown.sheets
        else None,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
