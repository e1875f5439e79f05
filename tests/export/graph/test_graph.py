"""The exported graph against torch, on real pictures, through serve's own runner."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor

from foveate_export.errors import ExportError, UnsupportedHeadError
from foveate_export.exporter import export
from foveate_export.graph.classifier import resolve_ranks
from foveate_export.graph.onnx import OPSET
from foveate_export.pictures import Pictures
from foveate_export.publish.bundle import Exported
from foveate_runtime.backends.base import Runner
from foveate_train import registry
from foveate_train.classifier import Classifier


def pixels_of(classifier: Classifier, images: np.ndarray) -> torch.Tensor:
    mean, std = torch.tensor(classifier.input.mean), torch.tensor(classifier.input.std)
    return ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)


def run(runner: Runner, images: np.ndarray, class_ids: list[list[int]], *outputs: str):
    ids = np.array(class_ids, dtype=np.int64)
    return runner.run({"image": images, "class_ids": ids}, list(outputs))


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def test_logits_equal_torch(lite0: Classifier, lite0_runner: Runner, photographs: Pictures) -> None:
    with torch.no_grad():
        expected = lite0.module(pixels_of(lite0, photographs.images)).numpy()
    got = lite0_runner.run({"image": photographs.images}, ["logits"])["logits"]
    assert relative(got, expected) < 1e-5
    assert (got.argmax(1) == expected.argmax(1)).all()


def test_maps_equal_autograd_for_ranks_and_ids_mixed(
    lite0: Classifier, lite0_runner: Runner, photographs: Pictures, autograd_cam
) -> None:
    images = photographs.images[:3]
    class_ids = [[-1, 285, -5, 0], [999, -2, 285, -1000], [-3, -1, 7, 500]]
    outputs = run(lite0_runner, images, class_ids, "logits", "cam.cam")
    ranked = np.argsort(-outputs["logits"], axis=1, kind="stable")

    for column in range(4):
        classes = [
            int(ranked[row, -1 - ids[column]]) if ids[column] < 0 else ids[column]
            for row, ids in enumerate(class_ids)
        ]
        expected = autograd_cam(lite0.module, "bn2", pixels_of(lite0, images), classes)
        for row in range(3):
            assert relative(outputs["cam.cam"][row, column], expected[row]) < 1e-4


def test_the_mean_of_a_map_and_the_bias_make_the_logit(
    lite0: Classifier, lite0_runner: Runner, photographs: Pictures
) -> None:
    classes = np.arange(1000)[None].repeat(len(photographs), 0).tolist()
    outputs = run(lite0_runner, photographs.images, classes, "logits", "cam.cam")
    bias = lite0.module.classifier.bias.detach().numpy()
    np.testing.assert_allclose(
        outputs["cam.cam"].mean((2, 3)) + bias, outputs["logits"], atol=1e-3, rtol=0
    )


def test_feature_maps_equal_torchvisions_extractor(
    lite0: Classifier, lite0_export: Exported, lite0_runner: Runner, photographs: Pictures
) -> None:
    layers = [feature.layer for feature in lite0_export.manifest.features]
    assert layers == ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"]
    # Its padding computes with sizes, which the extractor's tracer cannot follow.
    leaves = {"leaf_modules": [Conv2dSame]}
    extractor = create_feature_extractor(lite0.module, layers, tracer_kwargs=leaves)
    with torch.no_grad():
        expected = extractor(pixels_of(lite0, photographs.images[:2]))
    got = lite0_runner.run(
        {"image": photographs.images[:2]}, [f"features.{layer}" for layer in layers]
    )
    for layer in layers:
        assert relative(got[f"features.{layer}"], expected[layer].numpy()) < 1e-5


@pytest.mark.parametrize(("batch", "classes"), [(1, 1), (1, 7), (5, 1), (3, 20)])
def test_the_batch_and_the_number_of_classes_are_free(
    lite0_runner: Runner, photographs: Pictures, batch: int, classes: int
) -> None:
    images = photographs.images[:batch]
    ids = [list(range(row, row + classes)) for row in range(batch)]
    outputs = run(lite0_runner, images, ids, "logits", "cam.cam")
    assert outputs["logits"].shape == (batch, 1000)
    assert outputs["cam.cam"].shape == (batch, classes, 7, 7)

    for row in range(batch):
        alone = run(lite0_runner, images[row : row + 1], [ids[row]], "logits", "cam.cam")
        assert relative(outputs["logits"][row], alone["logits"][0]) < 1e-5
        assert relative(outputs["cam.cam"][row], alone["cam.cam"][0]) < 1e-5


def test_ranks_become_classes_and_ids_stay() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, -1.0, 7.0, 6.0]])
    class_ids = torch.tensor([[-1, -2, 0, -4], [3, -1, -3, -2]])
    assert resolve_ranks(logits, class_ids).tolist() == [[1, 3, 0, 0], [3, 2, 0, 3]]


def test_the_file_holds_every_weight_once(lite0: Classifier, lite0_export: Exported) -> None:
    path = lite0_export.path / "model.onnx"
    graph = onnx.load(path).graph
    held = sum(len(tensor.raw_data) for tensor in graph.initializer)
    weights = 4 * sum(parameter.numel() for parameter in lite0.module.parameters())
    # Folded into the convolutions, normalisations leave a bias and lose a scale.
    assert 0.99 * weights < held < weights + 4096
    assert path.stat().st_size < 1.01 * weights
    assert sum(list(tensor.dims) == [1000, 1280] for tensor in graph.initializer) == 1


def test_logits_depend_on_no_node_of_the_explanations(lite0_export: Exported) -> None:
    graph = onnx.load(lite0_export.path / "model.onnx").graph
    producer = {name: node for node in graph.node for name in node.output}
    needed, pending = {}, ["logits"]
    while pending:
        node = producer.get(pending.pop())
        if node is not None and id(node) not in needed:
            needed[id(node)] = node.op_type
            pending += node.input
    used = set(needed.values())
    assert {"Conv", "Gemm"} <= used
    assert not {"TopK", "GatherND", "MatMul"} & used


def test_the_file_is_valid_and_tells_nothing_of_its_maker(lite0_export: Exported) -> None:
    path = lite0_export.path / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b"site-packages" not in path.read_bytes()


def test_a_network_of_digits_with_maps_of_its_last_layer(
    convnet4: Classifier,
    convnet4_export: Exported,
    digits: Pictures,
    open_runner,
    autograd_cam,
) -> None:
    manifest = convnet4_export.manifest
    assert [(c.method, c.layer, c.height, c.width) for c in manifest.cams] == [
        (method, "layer4", 7, 7) for method in ("cam", "gradcam", "hirescam", "layercam")
    ]
    with open_runner(convnet4_export) as runner:
        outputs = run(runner, digits.images, [[-10, 4]] * len(digits), "logits", "cam.cam")
    worst = outputs["logits"].argmin(1)
    pixels = pixels_of(convnet4, digits.images)
    for column, classes in enumerate([worst, [4] * len(digits)]):
        expected = autograd_cam(convnet4.module, "layer4", pixels, classes)
        assert relative(outputs["cam.cam"][:, column], expected) < 1e-4


def test_named_layers_and_what_works_in_place(
    tmp_path: Path, photographs: Pictures, open_runner
) -> None:
    resnet = registry.create("torchvision:resnet18", weights="random:0")
    layers = ["bn1", "layer2.0", "layer4.1.conv2", "layer3"]
    pictures = Pictures(photographs.images[:2], photographs.description)
    exported = export(
        resnet, repository=tmp_path, name="resnet18", pictures=pictures, layers=layers
    )
    with torch.no_grad():
        expected = create_feature_extractor(resnet.module, layers)(
            pixels_of(resnet, pictures.images)
        )
    with open_runner(exported) as runner:
        got = runner.run({"image": pictures.images}, [f"features.{layer}" for layer in layers])
    assert expected["bn1"].min() == 0, "the ReLU after it works in place"
    for layer in layers:
        assert relative(got[f"features.{layer}"], expected[layer].numpy()) < 1e-5


class TrailingRelu(nn.Module):
    """Ends as torchvision's DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8))
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activations = functional.relu(self.features(x), inplace=True)
        return self.classifier(functional.adaptive_avg_pool2d(activations, (1, 1)).flatten(1))


def test_an_activation_in_place_before_the_pooling_is_part_of_the_map(
    tmp_path: Path, digits: Pictures, digit_classifier, open_runner
) -> None:
    torch.manual_seed(0)
    classifier = digit_classifier(TrailingRelu())
    exported = export(classifier, repository=tmp_path, name="trailing", pictures=digits)
    assert exported.manifest.cams[0].layer == "features"
    with open_runner(exported) as runner:
        outputs = run(runner, digits.images, [[-1]] * len(digits), "logits", "cam.cam")
    bias = classifier.module.classifier.bias.detach().numpy()[outputs["logits"].argmax(1)]
    np.testing.assert_allclose(
        outputs["cam.cam"].mean((1, 2, 3)) + bias, outputs["logits"].max(1), rtol=1e-4
    )


def test_a_flattened_head_is_explained_by_its_gradient(
    lenet5_export: Exported, digits: Pictures, open_runner
) -> None:
    assert lenet5_export.note is None
    assert [(cam.method, cam.layer, cam.height) for cam in lenet5_export.manifest.cams] == [
        (method, "c3", 10) for method in ("gradcam", "hirescam", "layercam")
    ]
    lenet5 = registry.create("foveate:lenet5", weights="random:0")
    pixels = pixels_of(lenet5, digits.images[:3])
    class_ids = [[-1, 4, -2, 4], [9, -10, 0, 5], [-5, -1, 1, 2]]
    outputs = ["logits", "features.c3", "cam.gradcam", "cam.hirescam", "cam.layercam"]
    with open_runner(lenet5_export) as runner:
        got = run(runner, digits.images[:3], class_ids, *outputs)
    kept = []
    handle = lenet5.module.c3.register_forward_hook(lambda *call: kept.append(call[2]))
    logits = lenet5.module(pixels.requires_grad_())
    handle.remove()
    assert relative(got["logits"], logits.detach().numpy()) < 1e-5
    ranked = logits.argsort(1, descending=True)
    for column in range(4):
        classes = torch.tensor([ids[column] for ids in class_ids])
        by_rank = ranked.gather(1, (-1 - classes).clamp(min=0)[:, None])[:, 0]
        scores = logits[torch.arange(3), torch.where(classes < 0, by_rank, classes)]
        (gradient,) = torch.autograd.grad(scores.sum(), kept[0], retain_graph=True)
        activations = kept[0].detach()
        weights = gradient.mean((2, 3), keepdim=True)
        expected = {
            "gradcam": (weights * activations).sum(1).clamp(min=0),
            "hirescam": (gradient * activations).sum(1),
            "layercam": (gradient.clamp(min=0) * activations).sum(1).clamp(min=0),
        }
        for method, maps in expected.items():
            for row in range(3):
                scale = max(float(maps[row].abs().max()), 1e-3 * float(maps.abs().max()))
                difference = np.abs(got[f"cam.{method}"][row, column] - maps[row].numpy())
                assert difference.max() < 1e-4 * scale


def test_no_more_ranks_are_made_than_an_engine_sorts() -> None:
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    ranked = logits.argsort(1, descending=True)
    class_ids = torch.tensor([[-1, 4999, -3840], [7, -2, -3]])
    expected = [[ranked[0, 0], 4999, ranked[0, 3839]], [7, ranked[1, 1], ranked[1, 2]]]
    assert resolve_ranks(logits, class_ids).tolist() == [[int(c) for c in row] for row in expected]
    with pytest.raises(RuntimeError, match="out of bounds"):
        resolve_ranks(logits, torch.tensor([[-3841], [0]]))


def test_a_gradient_holds_no_weight_twice(lenet5_export: Exported) -> None:
    graph = onnx.load(lenet5_export.path / "model.onnx").graph
    held = sum(len(tensor.raw_data) for tensor in graph.initializer)
    assert 4 * 61706 <= held < 4 * 61706 + 4096


def test_the_manifest_names_the_head(lite0_export: Exported, lenet5_export: Exported) -> None:
    said = [each.manifest.assumptions["head"] for each in (lite0_export, lenet5_export)]
    assert said == ["average pooling, one linear layer", "differentiated operator by operator"]


class Sorted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sort(2).values


def test_a_head_that_cannot_be_differentiated_is_exported_without_maps_and_says_so(
    tmp_path: Path, digits: Pictures, digit_classifier, open_runner
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 9, 9), nn.Flatten(2), Sorted(), nn.Flatten(), nn.Linear(72, 10)
    )
    classifier = digit_classifier(network)
    exported = export(classifier, repository=tmp_path, name="sorted", pictures=digits)
    assert exported.manifest.cams == ()
    assert exported.note is not None
    assert exported.note.startswith("no class activation maps: this head is not supported")
    assert exported.manifest.assumptions["cams"] == exported.note
    assert "head" not in exported.manifest.assumptions
    model = onnx.load(exported.path / "model.onnx")
    assert [node.name for node in model.graph.input] == ["image"]
    with torch.no_grad():
        expected = network(pixels_of(classifier, digits.images)).numpy()
    with open_runner(exported) as runner:
        got = runner.run({"image": digits.images}, ["logits", "features.0"])
    assert relative(got["logits"], expected) < 1e-5
    assert got["features.0"].shape == (len(digits), 8, 3, 3)
    with pytest.raises(UnsupportedHeadError, match="sort in 2 cannot be differentiated"):
        export(classifier, repository=tmp_path, name="no", pictures=digits, cam_layer="0")


def test_an_operator_without_an_onnx_counterpart_is_named(
    tmp_path: Path, digits: Pictures, digit_classifier
) -> None:
    class Bessel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 10, 3)
            self.head = nn.Linear(10, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.special.bessel_j0(self.stem(x)).mean((2, 3)))

    with pytest.raises(ExportError, match=r"cannot be written as ONNX: .*bessel_j0"):
        export(
            digit_classifier(Bessel()),
            repository=tmp_path / "models",
            name="bessel",
            pictures=Pictures(digits.images[:2], digits.description),
        )
    assert not (tmp_path / "models").exists()
