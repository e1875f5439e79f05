"""`foveate visualize cam`."""

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from foveate_train import registry
from foveate_train.commands.visualize import main
from foveate_train.visualize import cam
from foveate_train.visualize.subject import photograph


@pytest.fixture(scope="module")
def cat(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "cat.jpg"
    Image.fromarray(skimage.data.chelsea()).save(file)
    return file


@pytest.fixture
def draw(tmp_path):
    def run(model, *arguments):
        return main(["cam", model, *map(str, arguments), "--out", str(tmp_path / "out")])

    return run


def test_the_five_best_classes_of_a_photograph(draw, cat, tmp_path, monkeypatch):
    drawn = []
    sheet = cam.sheet
    monkeypatch.setattr(
        cam, "sheet", lambda cells, **more: drawn.append(more) or sheet(cells, **more)
    )
    methods = ("gradcam", "hirescam", "layercam")
    model = "package:efficientnet_lite0"
    assert draw(model, cat, "--layers", "blocks.4", "bn2", "--methods", *methods) == 0
    (more,) = drawn
    assert len(more["columns"]) == 1 + 5
    assert any(name.startswith("tiger cat\n") for name in more["columns"])
    assert len(more["rows"]) == 2 * 3
    out = tmp_path / "out"
    maps = np.load(out / "cam-cat-bn2.npy")
    assert maps.shape == (3, 5, 7, 7)
    assert np.load(out / "cam-cat-blocks.4.npy").shape == (3, 5, 14, 14)
    # One linear layer follows the mean of bn2: its maps sum to the logits less the biases.
    classifier = registry.create(model)
    image = photograph(cat, classifier.input).image[None]
    with torch.no_grad():
        logits = classifier.module(image)[0]
    best = logits.topk(5).indices
    bias = dict(classifier.module.named_parameters())["classifier.bias"][best]
    assert np.allclose(maps[1].sum((1, 2)), (logits[best] - bias).detach().numpy(), atol=1e-3)


def test_one_class_by_label_or_number(draw, cat, tmp_path):
    assert draw("package:efficientnet_lite0", cat, "--class", "tabby") == 0
    by_label = np.load(tmp_path / "out" / "cam-cat-bn2.npy")
    assert draw("package:efficientnet_lite0", cat, "--class", "281") == 0
    assert by_label.shape == (1, 1, 7, 7)
    assert np.array_equal(by_label, np.load(tmp_path / "out" / "cam-cat-bn2.npy"))


def test_all_methods_at_all_layers(draw, tmp_path, test_digits):
    digit = tmp_path / "digit.png"
    Image.fromarray(test_digits[0][0, 0].numpy()).save(digit)
    assert draw("foveate:convnet4", digit, "--layers", "all", "--methods", "all") == 0
    found = {file.stem: np.load(file).shape for file in (tmp_path / "out").glob("*.npy")}
    assert found == {
        "cam-digit-layer1": (3, 5, 28, 28),
        "cam-digit-layer2": (3, 5, 14, 14),
        "cam-digit-layer4": (3, 5, 7, 7),
    }


def test_each_digit_has_a_picture(draw, tmp_path):
    assert draw("foveate:convnet4") == 0
    assert len(list((tmp_path / "out").glob("cam-?.png"))) == 10


def test_files_of_one_name_do_not_take_each_others_place(draw, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("L", (28, 28)).save(tmp_path / folder / "x.png")
    assert draw("foveate:convnet4", tmp_path / "a" / "x.png", tmp_path / "b" / "x.png") == 0
    names = sorted(file.name for file in (tmp_path / "out").glob("*.png"))
    assert names == ["cam-1-x.png", "cam-2-x.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--class", "10"), "--class 10: the classes are 0 to 9"),
        (("--methods", "gradkam"), "'hirescam', 'layercam' or 'all'"),
        (("--layers", "layer"), "--layers layer: foveate:convnet4 has no layer"),
    ],
)
def test_wrong_usage_is_one_line(draw, capsys, arguments, said):
    assert draw("foveate:convnet4", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_label_that_is_misspelt_is_answered_with_near_ones(draw, cat, capsys):
    assert draw("package:efficientnet_lite0", cat, "--class", "tabbby") == 2
    assert "near labels: tabby" in capsys.readouterr().err
