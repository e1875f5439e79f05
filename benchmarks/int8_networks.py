"""What int8 does to networks of other kinds, by the same steps as the export's.

    python -m benchmarks.int8_networks BUNDLE... [--images DIR]

Each bundle's fp32 graph is quantised with no layer left in float, by both schemes,
and run in ONNX Runtime on photographs that it was not calibrated on. Counted are
the weighted layers that int8 holds, the best classes that stay, and the root mean
square of what changes over that of fp32: in the logits, and in every map of fp32's
best class. With random weights, which is all that packages hold of most networks,
logits hardly differ from class to class, so that noise changes the best one more
easily than it does in a trained network; the ratios say more.
"""

import argparse
import os
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import machine
from benchmarks.request_cost import read_pictures
from foveate_export.variants import INT8, file_name
from foveate_export.variants.quantise import candidates
from foveate_serve.backends.registry import create_runner
from foveate_serve.bundle.bundle import Bundle
from foveate_serve.bundle.manifest import CAM_PREFIX, VariantEntry
from foveate_serve.imaging.decode import ImageLimits
from foveate_serve.imaging.transform import prepare

RESULTS = Path(__file__).parent / "results" / "int8_networks.json"
PHOTOGRAPHS = 32
"""Half of them to calibrate on, the others to compare."""

WEIGHTED = ("Conv", "Gemm")

Outputs = Mapping[str, NDArray[np.float32]]


def answers(bundle: Bundle, variant: str, images: NDArray[np.uint8], classes: object) -> Outputs:
    """Return the logits and, for `classes`, int64 [N, 1], the maps of a variant."""
    cams = [f"{CAM_PREFIX}{cam.method}" for cam in bundle.manifest.cams]
    with create_runner(bundle, variant=variant, backend="onnxruntime") as runner:
        found = dict(runner.run({"image": images}, ["logits"]))
        for cam in cams:
            ids = found["logits"].argmax(1)[:, None] if classes is None else np.asarray(classes)
            found |= runner.run({"image": images, "class_ids": ids}, [cam])
    return found


def layers_in_int8(path: Path) -> tuple[int, int]:
    """Return how many convolutions and linear layers read dequantised weights, and of how many."""
    graph = onnx.load(path).graph
    dequantised = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in WEIGHTED]
    return sum(dequantised.issuperset(node.input[:2]) for node in layers), len(layers)


def measure(path: Path, pictures: list[bytes]) -> list[dict[str, object]]:
    """Quantise one bundle's graph by every scheme and compare the answers."""
    opened = Bundle.open(path)
    spec = opened.manifest.input
    images = np.stack([prepare(data, spec, ImageLimits())[0] for data in pictures])
    calibrating, compared = images[::2], images[1::2]
    fp32 = answers(opened, "fp32", compared, None)
    best = fp32["logits"].argmax(1)[:, None]
    rows = []
    for variant, scheme in INT8.items():
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / file_name(variant)
            source = path / file_name("fp32")
            tries = candidates(source, target, calibrating, scheme, stage=lambda _: nullcontext())
            whole = next(tries)
            tries.close()
            entry = VariantEntry.model_construct(name=variant, file=target.name)
            manifest = opened.manifest.model_copy(update={"variants": (entry,)})
            quantised = Bundle(path=Path(folder), manifest=manifest, labels=opened.labels)
            int8 = answers(quantised, variant, compared, best)
            done, all_layers = layers_in_int8(target)
            size = target.stat().st_size
        rms = {
            name: round(float(np.sqrt(np.square(int8[name] - fp32[name]).mean()
                                      / np.square(fp32[name]).mean())), 4)
            for name in fp32
        }  # fmt: skip
        rows.append(
            {
                "model": opened.manifest.classifier,
                "arguments": opened.manifest.arguments,
                "variant": variant,
                "layers_in_int8": done,
                "layers": all_layers,
                "megabytes": round(size / 1e6, 1),
                "megabytes_fp32": round(source.stat().st_size / 1e6, 1),
                "best_class_stays": round(
                    float((int8["logits"].argmax(1) == best[:, 0]).mean()), 3
                ),
                "calibration_sqnr_db": round(whole.sqnr, 1),
                "rms_over_fp32": rms,
            }
        )
    return rows


def main() -> None:
    """Parse the command line, measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.images is None:
        parser.error("--images DIR is needed where FOVEATE_IMAGENET_DIR is not set")
    pictures = read_pictures(Path(options.images))[:PHOTOGRAPHS]
    console = Console(stderr=True)
    rows: list[dict[str, object]] = []
    for path in options.bundles:
        for row in measure(path, pictures):
            console.print(row)
            rows.append(row)
    document = {
        "benchmark": "int8_networks",
        "images": len(pictures) // 2,
        "networks": rows,
        "machine": machine.describe(),
    }
    machine.save(document, options.out)


if __name__ == "__main__":
    main()
