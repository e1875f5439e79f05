"""A real model that names a picture's colour, and crops of photographs to name."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pytest
import skimage
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from foveate_client.commands import batch

from ...conftest import served

SIDE = 16
SCALE = 8.0
LABELS = ("red", "forest green", "blue, azure")
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def graph() -> onnx.ModelProto:
    """Build the graph: a colour's logit is 8 times its mean over the picture, from 0 to 1.

    The layer `planes` is the picture as float [N, 3, 16, 16] from 0 to 8, and the
    map is the plane of the best class.
    """
    constants = {
        "scale": np.float32(SCALE / 255),
        "space": np.array([2, 3], dtype=np.int64),
        "last": np.array([-1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["features.planes"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["features.planes", "space"], ["logits"], keepdims=0),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1),
        helper.make_node("Unsqueeze", ["best", "last"], ["index"]),
        helper.make_node("GatherND", ["features.planes", "index"], ["cam.cam"], batch_dims=1),
    ]
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "colours",
            [
                value("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3]),
                value("class_ids", TensorProto.INT64, ["N", "K"]),
            ],
            [
                value("logits", TensorProto.FLOAT, ["N", 3]),
                value("cam.cam", TensorProto.FLOAT, ["N", "K", SIDE, SIDE]),
                value("features.planes", TensorProto.FLOAT, ["N", 3, SIDE, SIDE]),
            ],
            [numpy_helper.from_array(np.asarray(x), name) for name, x in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the bundle of the graph."""
    root = tmp_path_factory.mktemp("repository")
    bundle = root / "colours" / "1"
    bundle.mkdir(parents=True)
    (bundle / "model.onnx").write_bytes(graph().SerializeToString())
    (bundle / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    shape = {"height": SIDE, "width": SIDE}
    parity = {
        "images": 1,
        "data": "colours",
        "logits_max_abs": 0,
        "top1_agreement": 1,
        "cams": {"cam": 0},
        "features": {"planes": 0},
    }
    files = {
        file.name: {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "size": file.stat().st_size,
        }
        for file in bundle.iterdir()
    }
    manifest = {
        "name": "colours",
        "version": 1,
        "classifier": "tests:colours",
        "created": datetime.now(UTC).isoformat(),
        "versions": {"onnx": onnx.__version__},
        "parameters": 3,
        "classes": 3,
        "opset": 18,
        "input": {
            **shape,
            "channels": 3,
            "resize": SIDE,
            "interpolation": "bilinear",
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
        },
        "cams": [{"method": "cam", "layer": "planes", **shape}],
        "features": [{"layer": "planes", "channels": 3, **shape}],
        "variants": [{"name": "fp32", "file": "model.onnx", "parity": parity}],
        "files": files,
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def served_colours(repository: Path) -> Iterator[str]:
    """The address of a server of the repository, in a process of its own."""
    with served(repository) as address:
        yield address


@dataclass(frozen=True)
class Crop:
    """A crop of a photograph, in the classifier's own size, and what the graph makes of it."""

    path: Path
    pixels: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """The mean of each colour, as the graph scales it: its logits and its embedding."""
        return self.pixels.mean(axis=(0, 1)) * SCALE / 255

    @property
    def scores(self) -> np.ndarray:
        exponentials = np.exp(self.means)
        return exponentials / exponentials.sum()

    @property
    def best(self) -> int:
        return int(self.means.argmax())


def write_crops(folder: Path, count: int) -> list[Crop]:
    """Write `count` crops as PNG files into folders that name their classes, in several ways."""
    names = (("RED", "0"), ("forest_green", "1"), ("azure", "2"))
    pictures = []
    for name in PHOTOGRAPHS:
        with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
            pictures.append(np.asarray(image.convert("RGB")))
    places = np.random.default_rng(7)
    crops = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        top, left = (places.integers(0, size - SIDE) for size in picture.shape[:2])
        pixels = picture[top : top + SIDE, left : left + SIDE]
        crop = Crop(Path(), pixels)
        path = folder / names[crop.best][number % 2] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        crops.append(Crop(path, pixels))
    return sorted(crops, key=lambda crop: crop.path)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Crop]:
    """Sixty crops in folders that name their classes."""
    return write_crops(tmp_path_factory.mktemp("photographs"), 60)


@pytest.fixture(scope="session")
def folder(photographs: list[Crop]) -> Path:
    return photographs[0].path.parents[1]


@pytest.fixture
def red(tmp_path):
    """A red picture in a folder of blue ones."""
    folder = tmp_path / "pictures" / "azure"
    folder.mkdir(parents=True)
    Image.new("RGB", (16, 16), (200, 10, 10)).save(folder / "red.png")
    return folder / "red.png"


@pytest.fixture
def run(repository, capsys):
    """Run `foveate batch` in this process; return its code, stdout and stderr."""

    def run(*arguments, source=("--repository", repository)):
        code = batch.main([*map(str, arguments), *map(str, source)])
        return code, *capsys.readouterr()

    return run
