"""Random weights: a map that the network draws is another then, and one of the picture is not."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from foveate_runtime.backends.onnxruntime.pruning import OnnxFile
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import MANIFEST_FILE, Faithfulness
from foveate_runtime.commands import card, evaluate
from foveate_runtime.evaluation.randomisation import Weights, find_layers, rank_correlation

from ..colours import LABELS, SIZE, relist, write_colour_bundle


def network() -> onnx.ModelProto:
    """Build two convolutions, pooling and a linear layer, with three maps of every class.

    `cam` reads the linear layer's weights in another layout, and `edges` only the picture.
    """
    random = np.random.default_rng(2)
    linear = random.normal(0, 1, (8, 3)).astype(np.float32)
    constants = {
        "first": random.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32),
        "second": random.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32),
        "linear": linear,
        "turned": np.ascontiguousarray(linear.T),
        "scale": np.float32(1 / 255),
        "axes": np.array([2, 3], np.int64),
        "one": np.array([1], np.int64),
        "mask": np.array([[0, 1, 1]], np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Mul", ["float", "scale"], ["scaled"]),
        node("Transpose", ["scaled"], ["picture"], perm=[0, 3, 1, 2]),
        node("Conv", ["picture", "first"], ["firsts"], pads=[1, 1, 1, 1]),
        node("Relu", ["firsts"], ["active"]),
        node("Conv", ["active", "second"], ["seconds"], pads=[1, 1, 1, 1]),
        node("Relu", ["seconds"], ["features.planes"]),
        node("ReduceMean", ["features.planes", "axes"], ["means"], keepdims=0),
        node("MatMul", ["means", "linear"], ["plain"]),
        node("Mul", ["plain", "mask"], ["masked"]),
        node("Add", ["plain", "masked"], ["logits"]),
        node("Gather", ["turned", "class_ids"], ["chosen"]),
        node("Einsum", ["chosen", "features.planes"], ["cam.cam"], equation="nkc,nchw->nkhw"),
        node("ReduceMean", ["picture", "one"], ["grey"]),
        node("Shape", ["class_ids"], ["asked"]),
        node("Concat", ["asked", "one", "one"], ["shape"], axis=0),
        node("Expand", ["grey", "shape"], ["cam.edges"]),
    ]
    maps = ["N", "K", SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "network",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3]),
            helper.make_tensor_value_info("class_ids", TensorProto.INT64, ["N", "K"]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("cam.cam", TensorProto.FLOAT, maps),
            helper.make_tensor_value_info("cam.edges", TensorProto.FLOAT, maps),
            helper.make_tensor_value_info("features.planes", TensorProto.FLOAT, ["N", 8, 8, 8]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = write_colour_bundle(tmp_path / "repository")
    (path / "model.onnx").write_bytes(network().SerializeToString())
    relist(path, "model.onnx")
    manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
    manifest["cams"].append({"method": "edges", "layer": "none", "height": SIZE, "width": SIZE})
    manifest["features"][0]["channels"] = 8
    manifest["variants"][0]["parity"]["cams"] |= {"edges": 0}
    (path / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(24):
        folder = tmp_path / "data" / LABELS[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


def test_what_the_network_draws_changes_and_what_the_picture_draws_does_not(
    bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--repository", str(bundle.parents[1]), "--model", "colours"]
    arguments += ["--data", str(pictures), "--explanations"]
    assert evaluate.main([*arguments, "--json"]) == 0
    worth = Faithfulness.model_validate(json.loads(capsys.readouterr().out)["explanations"])
    found = worth.randomisation
    assert found is not None
    assert (found.layers, found.of) == ((1, 2, 3), 3)
    assert [mean.mean for mean in found.maps["edges"] if mean] == pytest.approx([1, 1, 1])
    last = found.maps["cam"][-1]
    assert last is not None
    assert abs(last.mean) < 0.3
    assert Bundle.open(bundle.parent / "2").manifest.faithfulness == worth
    # What served is as it was.
    assert (bundle / "model.onnx").read_bytes() == network().SerializeToString()

    assert card.main([str(bundle.parent / "2"), "--out", str(tmp_path / "card.md")]) == 0
    assert f"3 of 3 layers random | {last.mean:.3f}" in (tmp_path / "card.md").read_text("utf-8")

    assert evaluate.main([*arguments, "--version", "1"]) == 0
    assert "1.00 ± 0.00" in capsys.readouterr().out


def test_a_quantised_variant_is_not_put_at_random(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((bundle / MANIFEST_FILE).read_text(encoding="utf-8"))
    manifest["variants"][0]["quantisation"] = {
        "scheme": "symmetric",
        "data": "colours",
        "images": 1,
        "digest": f"sha256:{'0' * 64}",
        "float_layers": [],
        "agreement": 1,
        "sqnr": 40,
    }
    (bundle / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    arguments = ["--repository", str(bundle.parents[1]), "--model", "colours"]
    assert evaluate.main([*arguments, "--data", str(pictures), "--explanations"]) == 0
    assert "no random weights" in capsys.readouterr().out
    kept = Bundle.open(bundle.parent / "2").manifest.faithfulness
    assert kept is not None
    assert kept.randomisation is None


def test_copies_in_another_layout_are_changed_alike(bundle: Path) -> None:
    file = OnnxFile(bundle / "model.onnx")
    weights = Weights(dict(file.arrays()))
    assert find_layers(file, weights.names) == [["first"], ["second"], ["linear"]]
    changed = onnx.load_from_string(file.exchanged(weights.shuffled(["linear"])))
    onnx.checker.check_model(changed, full_check=True)
    before, after = (
        {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        for model in (network(), changed)
    )
    assert (after["turned"] == after["linear"].T).all()
    assert not (after["linear"] == before["linear"]).all()
    assert sorted(after["linear"].ravel()) == sorted(before["linear"].ravel())
    for name in before.keys() - {"linear", "turned"}:
        assert (after[name] == before[name]).all()


def test_the_rank_correlation_knows_ties_and_maps_without_an_order() -> None:
    one = np.array([[1, 2], [2, 3]], np.float32)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4, by hand.
    other = np.array([[0, 1], [2, 9]], np.float32)
    assert rank_correlation(one, other) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    assert rank_correlation(one, np.zeros((2, 2), np.float32)) is None
    assert rank_correlation(one, np.full((2, 2), np.nan, np.float32)) is None
