"""A small real bundle: a classifier of colours, with exact maps."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.golden import Golden, expect

SIZE = 8
LABELS = ("red", "green", "blue")
BIAS = (0.25, 0.0, -0.25)


def colour_graph() -> onnx.ModelProto:
    """Build the graph: a colour's logit is its mean over the picture plus a bias.

    The layer `planes` is the picture as float [N, 3, 8, 8], the map of a class
    is its plane, and a negative class id is resolved by rank, as the graph
    contract says.
    """
    constants = {
        "bias": np.array(BIAS, dtype=np.float32),
        "scale": np.float32(1 / 255),
        "axes": np.array([2, 3], dtype=np.int64),
        "classes": np.array([3], dtype=np.int64),
        "zero": np.int64(0),
        "one": np.int64(1),
        "last": np.array([-1], dtype=np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Mul", ["float", "scale"], ["scaled"]),
        node("Transpose", ["scaled"], ["features.planes"], perm=[0, 3, 1, 2]),
        node("ReduceMean", ["features.planes", "axes"], ["means"], keepdims=0),
        node("Add", ["means", "bias"], ["logits"]),
        node("TopK", ["logits", "classes"], ["sorted", "ranking"]),
        node("Less", ["class_ids", "zero"], ["is_rank"]),
        node("Neg", ["class_ids"], ["negated"]),
        node("Sub", ["negated", "one"], ["signed_rank"]),
        node("Where", ["is_rank", "signed_rank", "zero"], ["rank"]),
        node("GatherElements", ["ranking", "rank"], ["ranked"], axis=1),
        node("Where", ["is_rank", "ranked", "class_ids"], ["chosen"]),
        node("Unsqueeze", ["chosen", "last"], ["indices"]),
        node("GatherND", ["features.planes", "indices"], ["cam.cam"], batch_dims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3]),
            helper.make_tensor_value_info("class_ids", TensorProto.INT64, ["N", "K"]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("cam.cam", TensorProto.FLOAT, ["N", "K", SIZE, SIZE]),
            helper.make_tensor_value_info(
                "features.planes", TensorProto.FLOAT, ["N", 3, SIZE, SIZE]
            ),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def write_colour_bundle(
    folder: Path, *, name: str = "colours", version: int = 1, scores: str | None = None
) -> Path:
    """Write the bundle `folder/<name>/<version>`, which says nothing of scores unless told to."""
    path = folder / name / str(version)
    path.mkdir(parents=True)
    (path / "model.onnx").write_bytes(colour_graph().SerializeToString())
    (path / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    files = {
        file.name: {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "size": file.stat().st_size,
        }
        for file in path.iterdir()
    }
    manifest = {
        "name": name,
        "version": version,
        "classifier": "tests:colours",
        "created": datetime.now(UTC).isoformat(),
        "versions": {"onnx": onnx.__version__},
        "parameters": 3,
        "classes": 3,
        "opset": 18,
        "input": {
            "height": SIZE,
            "width": SIZE,
            "channels": 3,
            "resize": SIZE,
            "interpolation": "bilinear",
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
        },
        "cams": [{"method": "cam", "layer": "planes", "height": SIZE, "width": SIZE}],
        "features": [{"layer": "planes", "channels": 3, "height": SIZE, "width": SIZE}],
        "variants": [
            {
                "name": "fp32",
                "file": "model.onnx",
                "parity": {
                    "images": 1,
                    "data": "colours",
                    "logits_max_abs": 0,
                    "top1_agreement": 1,
                    "cams": {"cam": 0},
                    "features": {"planes": 0},
                },
            }
        ],
        "files": files,
    }
    if scores is not None:
        manifest |= {"scores": scores, "assumptions": {"scores": f"{scores}, in a test"}}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return path


@pytest.fixture
def write_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes bundles into the repository `tmp_path / "repository"`."""

    def write(*, name: str = "colours", version: int = 1, scores: str | None = None) -> Path:
        repository = tmp_path / "repository"
        return write_colour_bundle(repository, name=name, version=version, scores=scores)

    return write


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_colour_bundle(tmp_path_factory.mktemp("repository")))


@pytest.fixture(scope="session")
def colours_golden() -> Golden:
    """Pictures, and what the mathematics says of them."""
    colours = np.array([[255, 0, 51], [0, 102, 204]], dtype=np.uint8)
    images = colours[:, None, None].repeat(SIZE, axis=1).repeat(SIZE, axis=2)
    images[:, :4] //= 3
    class_ids = np.array([[0, 2], [1, 1]])
    planes = (images / np.float32(255)).transpose(0, 3, 1, 2)
    return Golden(
        images=images,
        class_ids=class_ids,
        outputs=expect(
            {
                "logits": planes.mean((2, 3)) + np.float32(BIAS),
                "cam.cam": planes[np.arange(2)[:, None], class_ids],
                "features.planes": planes,
            }
        ),
    )


def relist(bundle: Path, name: str) -> None:
    """Bring what the manifest says of a file up to date."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    data = (bundle / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture
def golden_bundle(tmp_path: Path, colours_golden: Golden) -> Path:
    """Write a bundle with golden answers and the tolerances of fp32."""
    path = write_colour_bundle(tmp_path / "repository")
    colours_golden.write(path / "golden.npz")
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest["golden"] = {"file": "golden.npz", "images": 2, "data": "colours"}
    manifest["variants"][0]["tolerances"] = {
        "measure": "largest",
        "logits": 1e-3,
        "cams": 1e-4,
        "features": 1e-4,
    }
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    relist(path, "golden.npz")
    return path
