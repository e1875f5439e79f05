"""Builds TensorRT-RTX engines without a GPU, and writes what came of it to a file.

    python -m benchmarks.engines [CLASSIFIER ...]

Of each classifier, with random weights, every precision that TensorRT takes
gets an engine that classifies and one that explains. The results of
classifiers that are not named are kept. Nothing is run: this shows that the
graphs are accepted, how long that takes and how large the engines are. The
int8 graph keeps no layer in float.
"""

import argparse
import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from benchmarks import machine
from foveate_export.anatomy.layers import select_layers, taps_of
from foveate_export.default_pictures import for_classifier
from foveate_export.errors import ExportError
from foveate_export.exporter import SEED, examine
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_export.graph.onnx import write_onnx
from foveate_export.publish.tensorrt.builder import build
from foveate_export.publish.tensorrt.target import Target, choose_target
from foveate_export.publish.variants.half import halve
from foveate_export.publish.variants.quantise import candidates
from foveate_runtime.bundle.manifest import LOGITS_OUTPUT
from foveate_train import registry

RESULTS = Path(__file__).parent / "results" / "engines.json"
CLASSIFIERS = (
    "foveate:convnet4",
    "timm:tf_efficientnet_lite0",
    "torchvision:resnet50",
    "torchvision:vgg16",
)
CAPABILITY = "8.9"
CALIBRATION_IMAGES = 4


def main() -> None:
    """Build the engines and write the results."""
    parser = argparse.ArgumentParser(description="Build TensorRT-RTX engines without a GPU.")
    parser.add_argument("classifiers", nargs="*", default=CLASSIFIERS)
    names = parser.parse_args().classifiers
    target = choose_target("tensorrt_rtx", [CAPABILITY])
    rows = json.loads(RESULTS.read_text("utf-8"))["classifiers"] if RESULTS.exists() else {}
    for name in names:
        rows[name] = measure(name, target)
        report = {
            "machine": machine.describe(),
            "library": f"{target.library.flavour.name} {target.library.version}",
            "compute_capabilities": target.capabilities,
            "batch": target.batch.model_dump(),
            "classes": target.classes.model_dump(),
            "classifiers": rows,
        }
        machine.save(report, RESULTS)


def measure(name: str, target: Target) -> list[dict[str, object]]:
    """Return what became of each precision and kind of engine of a classifier."""
    classifier = registry.create(name, weights=f"random:{SEED}")
    anatomy = examine(classifier)
    layers = taps_of(select_layers(None, classifier.module, anatomy.layers))
    graph = ExplainedClassifier(classifier.module, classifier.input, anatomy.head, layers).eval()
    images = for_classifier(classifier).images[:CALIBRATION_IMAGES]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        fp32, fp16, int8 = (Path(folder) / f"{p}.onnx" for p in ("fp32", "fp16", "int8-symmetric"))
        write_onnx(graph, classifier.input, fp32)
        halve(fp32, fp16)
        next(candidates(fp32, int8, images, "symmetric", stage=nullcontext))
        for file in (fp32, fp16, int8):
            for kind, outputs in (("classify", [LOGITS_OUTPUT]), ("explain", graph.output_names)):
                row = {"variant": file.stem, "kind": kind, "onnx_bytes": file.stat().st_size}
                started = time.perf_counter()
                try:
                    engine = build(file, outputs, target)
                except ExportError as error:
                    row |= {"engine_bytes": None, "refused": str(error)}
                else:
                    seconds = round(time.perf_counter() - started, 2)
                    row |= {"engine_bytes": len(engine), "build_seconds": seconds}
                rows.append(row)
                print(name, row, flush=True)
    return rows


if __name__ == "__main__":
    main()
