"""Writes docs/zoo.md from the results of `benchmarks.zoo`.

python -m benchmarks.zoo_page
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "zoo.json"
PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"

COLUMNS = (
    "classifier",
    "weights",
    "input",
    "opset",
    "MB",
    "parameters, M",
    "operations, M",
    "methods",
    "layer of the maps",
    "logits",
    "maps",
    "features",
    "engines, MB",
    "export, s",
    "GiB",
)

_INTRODUCTION = """\
# The zoo

<!-- Written by `python -m benchmarks.zoo` from benchmarks/results/zoo.json. -->

{whole} classifiers, each exported by `foveate export` to one fp32 ONNX file that computes its own
explanations. Every output of every row was compared with torch, and the maps with its autograd,
before the bundle was published. Where no weights install as a package they are random, from the
seed 0: then the row says that the structure exports and computes what torch computes, and nothing
about accuracy.
"""

_EXPLANATION = """\
- *weights*: `package`, trained on ImageNet, or `random`.
- *parameters* and *operations* (multiply-accumulates for one picture) are in millions.
- *methods*: C is `cam.cam`, G `cam.gradcam`, H `cam.hirescam` and L `cam.layercam`, at the layer
  and the size beside them; `cam.cam` of a class map is the map behind that layer.
- *logits*, *maps*, *features*: differences from torch through ONNX Runtime, on MNIST's digits, on
  photographs, or on noise for what is no picture. Of the logits it is the root mean square over
  that of the logits in torch; of maps and feature maps the largest over the largest value, of the
  worst map.
- *engines*: what {library} built without a GPU for compute capability
  {capability}: the sizes of the engine that classifies and of the one that explains as well.
- *export* and *GiB*: processor seconds and peak memory of the whole command, with the comparison.

torch {torch}, ONNX Runtime {onnxruntime}; {cores} cores of {processor}.
"""


def page(report: Mapping[str, Any]) -> str:
    """Return the page for a results file."""
    rows = report["classifiers"]
    exported = {name: row for name, row in rows.items() if "refused" not in row}
    measured = report["machine"]
    packages = measured["packages"]
    parts = [
        _INTRODUCTION.format(whole=len(exported)),
        _table(exported),
        _EXPLANATION.format(
            library=f"TensorRT-RTX {packages['tensorrt-rtx-cu13']}",
            capability=report["compute_capability"],
            torch=packages["torch"],
            onnxruntime=packages["onnxruntime"],
            cores=measured["cores"],
            processor=measured["processor"],
        ),
        *_remarks(rows),
    ]
    return "\n".join(parts)


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(_cells(name, row) for name, row in rows.items())]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    network, *arguments = name.split()
    layer, height, width = row["cams"].get("gradcam", ("none", 0, 0))
    engines = row["engines"].get("bytes")
    return (
        " ".join([f"`{network}`", *arguments]),
        row["weights"].partition(":")[0],
        " x ".join(map(str, row["input"])),
        str(row["opset"]),
        f"{row['onnx_bytes'] / 1e6:.1f}",
        f"{row['parameters'] / 1e6:.2f}",
        f"{row['operations'] / 1e6:.0f}",
        " ".join(method[0].upper() for method in row["cams"]) or "none",
        f"{layer}, {height} x {width}" if row["cams"] else "",
        f"{row['logits_rms']:.0e}",
        _difference(row["cams_largest"]),
        _difference(row["features_largest"]),
        f"{engines['classify'] / 1e6:.1f}, {engines['explain'] / 1e6:.1f}" if engines else "none",
        f"{row['cpu_seconds']:.0f}",
        f"{row['peak_mib'] / 1024:.1f}",
    )


def _difference(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def _remarks(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return why something is missing in a row, or the row itself."""
    remarks = [
        *(f"- `{name}` is not exported: {row['refused']}" for name, row in rows.items()
          if "refused" in row),
        *(f"- `{name}`: {row['note']}" for name, row in rows.items() if row.get("note")),
        *(f"- `{name}` has no engines: {row['engines']['refused']}" for name, row in rows.items()
          if "refused" in row.get("engines", {})),
    ]  # fmt: skip
    return ["Missing:\n\n" + "\n".join(remarks) + "\n"] if remarks else []


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(json.loads(RESULTS.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
