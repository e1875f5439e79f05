"""What fp16 and int8 do to trained ConvNeXt, vision transformers and Swin.

    python -m benchmarks.attention_variants --networks DIR [--pictures N]

DIR holds the checkpoints of `benchmarks.digit_networks` and `benchmarks.attention_networks`.
Each network of digits is exported in every precision by the steps of `foveate export`,
calibrated on MNIST's training digits, and answers N test digits that the comparison with torch
did not see. Given is the share whose best class is that of fp32: int8 in ONNX Runtime, and fp16
in the backend `torch`, which keeps halves. Counted are the weighted layers that the reduced
precision holds, and of LayerNormalization, Softmax and GELU those that compute in float32: in
int8 a node is in integers if all that it reads is dequantised and what reads it quantises.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import machine, pages
from foveate_export.default_pictures import for_classifier
from foveate_export.exporter import export
from foveate_export.pictures import Pictures
from foveate_export.publish.variants import FP16, FP32, INT8, VARIANTS, file_name
from foveate_export.publish.variants.calibration import open_calibration
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import IMAGE_INPUT, LOGITS_OUTPUT
from foveate_train import checkpoint
from foveate_train.classifier import Classifier
from foveate_train.data import mnist

PAGE = pages.DOCS / "export" / "variants.md"
RESULTS = Path(__file__).parent / "results" / "attention_variants.json"
PICTURES = 2000
COMPARED_WITH_TORCH = 4
BATCH = 50
BACKENDS = {FP32: "onnxruntime", FP16: "torch", **dict.fromkeys(INT8, "onnxruntime")}
WEIGHTED = ("Conv", "Gemm", "MatMul")
KEPT = {"LayerNormalization": "LayerNorm", "Softmax": "softmax", "Gelu": "GELU", "Erf": "GELU"}
"""The operators that are counted; a GELU is one node, or is written with the error function."""


def in_integers(graph: onnx.GraphProto) -> set[str]:
    """Return the first outputs of the nodes between dequantised inputs and quantised outputs."""
    dequantised = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    quantised = {n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    constants = {tensor.name for tensor in graph.initializer}
    return {
        node.output[0]
        for node in graph.node
        if node.output[0] in quantised
        and (read := set(node.input) - constants - {""})
        and read <= dequantised
    }


def in_halves(model: onnx.ModelProto) -> set[str]:
    """Return the tensors that nodes give in 16 bits."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name
        for value in inferred.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }


def counts(path: Path, variant: str) -> dict[str, Any]:
    """Return of a graph the weighted layers in the reduced precision, and what is in float32."""
    model = onnx.load(path)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    dequantised = {
        n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights
    }
    halves = in_halves(model) if variant == FP16 else set()
    reduced = halves if variant == FP16 else in_integers(graph)
    layers = [
        node
        for node in graph.node
        if node.op_type in WEIGHTED and node.input[1] in weights | dequantised
    ]
    done = (
        sum(node.output[0] in halves for node in layers)
        if variant == FP16
        else sum(node.input[1] in dequantised for node in layers)
    )
    every, floats = Counter[str](), Counter[str]()
    for node in graph.node:
        if kind := KEPT.get(node.op_type):
            every[kind] += 1
            floats[kind] += node.output[0] not in reduced
    kept = {kind: [floats[kind], every[kind]] for kind in sorted(every)}
    return {"layers": [done, len(layers)], "float32": kept}


def best(path: Path, variant: str, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the class that a variant puts first for each of `images`, uint8 [N, H, W, C]."""
    with create_runner(Bundle.open(path), variant=variant, backend=BACKENDS[variant]) as runner:
        answers = [
            runner.run({IMAGE_INPUT: images[start : start + BATCH]}, [LOGITS_OUTPUT])
            for start in range(0, len(images), BATCH)
        ]
    return np.concatenate([answer[LOGITS_OUTPUT].argmax(1) for answer in answers])


def measure(
    classifier: Classifier, images: NDArray[np.uint8], labels: NDArray[np.int64], folder: Path
) -> dict[str, Any]:
    """Export one classifier of digits in every precision; return what each came to.

    Args:
        classifier: trained, of the ten digits.
        images: what the precisions are compared on, uint8 [N, 28, 28, 1].
        labels: their digits, int64 [N].
        folder: an empty one, for the bundles.
    """
    pictures = for_classifier(classifier)
    path = export(
        classifier,
        repository=folder,
        name="network",
        pictures=Pictures(pictures.images[:COMPARED_WITH_TORCH], pictures.description),
        variants=VARIANTS,
        calibration=open_calibration("mnist", classifier),
    ).path
    manifest = Bundle.open(path).manifest
    expected = best(path, FP32, images)
    rows: dict[str, Any] = {}
    for variant in (FP16, *INT8):
        quantised = manifest.variant(variant).quantisation
        rows[variant] = {
            "agreement": round(float((best(path, variant, images) == expected).mean()), 4),
            "float_layers": len(quantised.float_layers) if quantised else 0,
            **counts(path / file_name(variant), variant),
        }
    return {
        "pictures": len(images),
        "fp32_right": round(float((expected == labels).mean()), 4),
        "methods": [cam.method for cam in manifest.cams],
        "variants": rows,
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table for the page."""
    kinds = ("LayerNorm", "softmax", "GELU")
    head = ["network", "right", "variant", "agrees with fp32", "layers in it"]
    rows: list[Sequence[str]] = []
    for name, network in result["networks"].items():
        for variant, row in network["variants"].items():
            cells = [
                f"{row['agreement']:.1%}",
                "{} of {}".format(*row["layers"]),
                *("{} of {}".format(*row["float32"].get(kind, (0, 0))) for kind in kinds),
            ]
            rows.append([f"`{name}`", f"{network['fp32_right']:.1%}", variant, *cells])
    return pages.table([*head, *(f"{kind} in float32" for kind in kinds)], rows)


def main() -> None:
    """Measure every checkpoint of digits that is there; the results of others are kept."""
    # Not where this is imported for its measures alone: they register their networks.
    from benchmarks import attention_networks, digit_networks  # noqa: PLC0415

    trained = [*digit_networks.NETWORKS, *attention_networks.NETWORKS]
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--networks", type=Path, required=True, help="of attention_networks")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    console = Console(stderr=True)
    tested, labels = mnist.load("test")
    # The comparison at export takes the first ones.
    images, labels = tested[-options.pictures :, :, :, None], labels[-options.pictures :]
    networks: dict[str, Any] = (
        json.loads(options.out.read_text("utf-8"))["networks"] if options.out.exists() else {}
    )
    for name in (name for name in trained if name.endswith("_mnist")):
        if not (options.networks / name).exists():
            continue
        classifier = checkpoint.load(options.networks / name).classifier
        with tempfile.TemporaryDirectory() as folder:
            networks[name] = measure(classifier, images, labels, Path(folder))
        console.print(name, networks[name])
        result = {
            "benchmark": "attention_variants",
            "networks": networks,
            "machine": machine.describe(),
        }
        machine.save(result, options.out)
        if options.out == RESULTS:
            pages.write_part(PAGE, "attention_variants", page_part(result))


if __name__ == "__main__":
    main()
