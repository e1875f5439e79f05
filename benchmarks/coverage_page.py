"""Writes docs/coverage.md from the results of `benchmarks.coverage`.

python -m benchmarks.coverage_page
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "coverage.json"
PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"

EQUAL = 1e-4
"""Of the largest value: how far a map may lie from autograd's."""

COLUMNS = (
    "family", "network", "side", "cells", "layout", "head", "methods", "difference", "location"
)  # fmt: skip

_INTRODUCTION = """\
# Coverage

<!-- Written by `python -m benchmarks.coverage` from benchmarks/results/coverage.json. -->

What `foveate export` makes of the smallest member of the families of timm {timm} and torchvision
{torchvision}, with random weights, ten classes and a small picture: that says what the structure
gives, and nothing about accuracy. Layers that start at zero get random weights too.
{measured} of {of} families were tried.

- {exported} export to one ONNX file that answers as torch does.
- {grid} of these have a layer whose rows and columns follow the picture's; {maps} of these
  have maps.
- The maps of {equal} lie within {limit:g} of autograd's through ONNX Runtime, of the largest value.
- In {placed} of {grid} every exported layer passes the test of location: of photographs with a
  corner painted over, that corner of the layer's map changes most.
"""

_EXPLANATION = """\
- *side*: of the picture, in pixels; *cells*: rows and columns of the map that gradients weigh.
- *head*: how it is explained, as in [explanations](export/explanations.md#heads).
- *methods*: C `cam.cam`, G `cam.gradcam`, H `cam.hirescam`, L `cam.layercam`, and of the tokens
  that a head reads `relevance`, `rollout` and `legrad`; the default first.
- *difference*: from autograd, of the worst map, over its largest value before a ReLU; with *rms*
  the root mean square over that of the values, where a maximum hands a gradient to one of
  several cells.
- *location*: the layers that pass, of those exported.
"""

_SHORT = {"cam": "C", "gradcam": "G", "hirescam": "H", "layercam": "L"}


def page(report: Mapping[str, Any]) -> str:
    """Return the page for a results file."""
    rows = report["families"]
    exported = {name: row for name, row in rows.items() if "head" in row}
    grid = {name: row for name, row in exported.items() if row["layers"]}
    introduction = _INTRODUCTION.format(
        timm=report["timm"],
        torchvision=report["torchvision"],
        measured=len(rows),
        of=report["of"],
        exported=len(exported),
        grid=len(grid),
        maps=sum(bool(row["methods"]) for row in grid.values()),
        equal=sum(_equal(row) for row in grid.values()),
        limit=EQUAL,
        placed=sum(not row["misplaced"] for row in grid.values()),
    )
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(_cells(*item) for item in exported.items())]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return "\n".join([introduction, table, _EXPLANATION, *_remarks(rows)])


def _equal(row: Mapping[str, Any]) -> bool:
    compared = row["difference"] is not None and not row.get("silent")
    return compared and row["difference"] <= EQUAL


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    network, *arguments = row["network"].split()
    difference = "" if row["difference"] is None else f"{row['difference']:.0e}"
    return (
        name,
        " ".join([f"`{network}`", *arguments]),
        str(row["input"][0]),
        " x ".join(map(str, row["cells"] or [])),
        row["layout"] or "",
        row["head"] or "none",
        " ".join(_SHORT.get(method, method) for method in row["methods"]) or "none",
        difference + (" rms" if row["measure"] == "rms" and difference else ""),
        f"{row['layers'] - len(row['misplaced'])} of {row['layers']}",
    )


def _remarks(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return why something is missing in a row, or the row itself."""
    kinds = (
        ("refused", " is not exported: {}"),
        ("failed", " was not measured: {}"),
        ("note", ": {}"),
    )
    remarks = [
        f"- {name}{text.format(row[key])}"
        for key, text in kinds
        for name, row in rows.items()
        if row.get(key) and not row.get("methods")
    ]
    remarks += [
        f"- {name}: the test of location fails in {', '.join(row['misplaced'])}"
        for name, row in rows.items()
        if row.get("misplaced")
    ]
    remarks += [
        f"- {name}: the maps by {', '.join(row['silent'])} are zero, and nothing was compared"
        for name, row in rows.items()
        if row.get("silent")
    ]
    without: dict[str, list[str]] = {}
    for name, row in rows.items():
        if row.get("note") and row["methods"]:
            without.setdefault(row["note"], []).append(name)
    settled = [name for name, row in rows.items() if row.get("settled")]
    if settled:
        without[
            "batch norms have the statistics of the pictures, as any training gives them; "
            "with those they start with, values grow from block to block, and torch's own "
            "float32 is further from float64 than is accepted"
        ] = settled
    notes = [f"- {note}: {'; '.join(names)}" for note, names in without.items()]
    return [
        f"{heading}:\n\n" + "\n".join(lines) + "\n"
        for heading, lines in (("Missing", remarks), ("Said at the export", notes))
        if lines
    ]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(json.loads(RESULTS.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
