"""What the calibration of fp32 is worth to int8, where int8 moves the logits.

    python -m benchmarks.trust_int8 --fitted DIR [--images DIR] [--repository DIR]

EfficientNet-Lite0's graph is quantised by `onnxruntime.quantization.quantize_static` in two
ways: with one scale a tensor, which is its default, and with one scale an output channel. The
int8 of `foveate export` is in `benchmarks.trust`. The photographs of `--fitted` give the ranges
of the activations and the thresholds of LAC; those of `--images` judge them: how often the sets
hold the class, with the thresholds of the same graph, and with those of fp32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from benchmarks import machine, pages, script
from benchmarks.trust import covered, opened
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import IMAGE_INPUT, LOGITS_OUTPUT
from foveate_runtime.evaluation.labelled import open_labelled
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare
from foveate_runtime.options import option
from foveate_runtime.trust import sets

RESULTS = Path(__file__).parent / "results" / "trust_int8.json"
PAGE = pages.DOCS / "trust.md"
MODEL = "efficientnet_lite0"
FP32 = "fp32"
WAYS = {"int8, one scale a tensor": False, "int8, one scale a channel": True}
"""Whether weights have a scale an output channel, by the name of the way."""
COVERAGES = (0.9, 0.95)
RANGES = 32
"""The photographs that give the ranges of the activations."""
BATCH = 20

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]


class Reader(CalibrationDataReader):
    """Gives pictures, uint8 [N, H, W, C], one by one."""

    def __init__(self, pixels: Pixels) -> None:
        self._each: Iterator[Pixels] = iter(pixels)

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next one, None after the last."""
        picture = next(self._each, None)
        return None if picture is None else {IMAGE_INPUT: picture[np.newaxis]}


def read(folder: Path, bundle: Bundle) -> tuple[Pixels, NDArray[np.int64]]:
    """Return labelled photographs as the classifier gets them, and their classes, int64 [N]."""
    pixels, classes = [], []
    for _, file, class_id in open_labelled(str(folder), bundle.labels):
        data = file if isinstance(file, bytes) else file.read_bytes()
        pixels.append(prepare(data, bundle.manifest.input, ImageLimits())[0])
        classes.append(class_id)
    return np.stack(pixels), np.array(classes)


def logits_of(graph: Path, pixels: Pixels) -> Logits:
    """Return the logits, [N, classes], of pictures [N, H, W, C]."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    batches = (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
    return np.concatenate([session.run([LOGITS_OUTPUT], {IMAGE_INPUT: x})[0] for x in batches])


def measure(bundle: Bundle, fitted: Path, images: Path, folder: Path) -> dict[str, Any]:
    """Quantise the graph of a bundle; return what sets hold with each graph's thresholds."""
    (calibrating, known), (judging, classes) = read(fitted, bundle), read(images, bundle)
    graphs = {FP32: folder / "fp32.onnx"}
    whole = bundle.path / bundle.manifest.variant(FP32).file
    onnx.utils.extract_model(str(whole), str(graphs[FP32]), [IMAGE_INPUT], [LOGITS_OUTPUT])
    for name, per_channel in WAYS.items():
        graphs[name] = folder / f"{per_channel}.onnx"
        quantize_static(
            graphs[FP32],
            graphs[name],
            Reader(calibrating[:RANGES]),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
        )
    before = {name: logits_of(graph, calibrating) for name, graph in graphs.items()}
    after = {name: logits_of(graph, judging) for name, graph in graphs.items()}
    present = np.eye(bundle.manifest.classes, dtype=np.bool_)[known]
    rows = []
    for name in graphs:
        for source in dict.fromkeys((name, FP32)):
            found = {}
            for coverage in COVERAGES:
                thresholds = sets.fit(before[source], present, coverage, "softmax")
                members = sets.lac_members(after[name], thresholds, "softmax")
                found[f"{coverage:g}"] = {
                    "covered": round(covered(members, classes), 4),
                    "mean_size": round(float(members.sum(1).mean()), 2),
                }
            right = float((after[name].argmax(1) == classes).mean())
            rows.append({"graph": name, "thresholds": source, "top1": right, "lac": found})
    return {
        "benchmark": "trust_int8",
        "fitted": len(known),
        "tested": len(classes),
        "rows": rows,
        "machine": machine.describe(),
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table for the page."""
    head = ["", "thresholds of", "top-1"]
    for coverage in COVERAGES:
        head += [f"in the set for {coverage:g}", "classes"]
    rows = []
    for row in result["rows"]:
        cells = [row["graph"], row["thresholds"], f"{row['top1']:.0%}"]
        for found in row["lac"].values():
            cells += [f"{found['covered']:.0%}", f"{found['mean_size']:.2f}"]
        rows.append(cells)
    return pages.table(head, rows)


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    fitted: Path = option("photographs to calibrate on")


def main() -> None:
    """Measure, and write the results."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    bundle = opened(options.repository, MODEL)
    with TemporaryDirectory() as folder:
        result = measure(bundle, options.fitted, options.images, Path(folder))
    script.finish(result, page_part, options)


if __name__ == "__main__":
    main()
