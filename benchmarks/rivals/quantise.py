"""Quantises a graph with another tool, in an environment that has it.

python quantise.py nncf|modelopt GRAPH TARGET BATCHES NODES

BATCHES is an .npz file with the graph's inputs, `image` uint8 [B, N, H, W, C] and
`class_ids` int64 [B, N, K]; NODES a JSON file that lists the nodes which stay in float.
Needs nothing of Foveate.
"""

import json
import sys
from pathlib import Path

import numpy as np


def nncf(graph: Path, target: Path, batches: dict[str, np.ndarray], kept: list[str]) -> None:
    """Quantise with NNCF, as it does by default: with fast bias correction."""
    import nncf  # noqa: PLC0415  one of the two tools is installed
    import onnx  # noqa: PLC0415

    feeds = [
        dict(zip(batches, values, strict=True)) for values in zip(*batches.values(), strict=True)
    ]
    quantised = nncf.quantize(
        onnx.load(graph),
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        ignored_scope=nncf.IgnoredScope(names=kept),
    )
    onnx.save(quantised, target)


def modelopt(graph: Path, target: Path, batches: dict[str, np.ndarray], kept: list[str]) -> None:
    """Quantise with NVIDIA ModelOpt, calibrated by entropy as it does by default."""
    from modelopt.onnx.quantization import quantize  # noqa: PLC0415

    quantize(
        str(graph),
        calibration_data={name: np.concatenate(values) for name, values in batches.items()},
        calibration_eps=["cpu"],
        nodes_to_exclude=kept,
        high_precision_dtype="fp32",
        output_path=str(target),
    )


def main() -> None:
    """Read the arguments and quantise."""
    tool, graph, target, batches, nodes = sys.argv[1:]
    with np.load(batches) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    quantise = {"nncf": nncf, "modelopt": modelopt}[tool]
    quantise(Path(graph), Path(target), inputs, json.loads(Path(nodes).read_text("utf-8")))


if __name__ == "__main__":
    main()
