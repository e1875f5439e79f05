"""Labelled pictures and the accuracy measured on them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from skimage.io import imsave
from timm.data import ImageNetInfo

from foveate_export.default_pictures import for_classifier
from foveate_export.errors import ExportError
from foveate_export.pictures import MOST, Pictures, from_folder
from foveate_export.publish.bundle import Exported
from foveate_runtime.backends.base import Runner
from foveate_runtime.commands import evaluate
from foveate_runtime.evaluation.accuracy import measure_accuracy
from foveate_runtime.evaluation.labelled import LabelledError, NoPicturesError, open_labelled
from foveate_train.classifier import Classifier
from foveate_train.data import mnist

PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
ESPRESSO = 967
EGYPTIAN_CAT = 285
MISSILE = 657


def folder_of(root: Path, pictures: dict[str, list[str]]) -> Path:
    """Make an image folder of scikit-image's photographs: file names by class folder."""
    for name, files in pictures.items():
        (root / name).mkdir(parents=True)
        for file in files:
            shutil.copy(PHOTOGRAPHS / file, root / name)
    return root


def targets(root: Path, labels: tuple[str, ...], limit: int | None = None) -> dict[str, int]:
    return {Path(name).name: target for name, _, target in open_labelled(str(root), labels, limit)}


def test_folders_are_called_by_label_wordnet_id_or_index(tmp_path: Path, lite0: Classifier) -> None:
    wordnet = ImageNetInfo().index_to_label_name(EGYPTIAN_CAT)
    assert lite0.labels[ESPRESSO] == "espresso"
    root = folder_of(
        tmp_path,
        {"espresso": ["coffee.png"], wordnet: ["chelsea.png"], str(MISSILE): ["rocket.jpg"]},
    )
    assert targets(root, lite0.labels) == {
        "coffee.png": ESPRESSO,
        "chelsea.png": EGYPTIAN_CAT,
        "rocket.jpg": MISSILE,
    }


def test_a_label_that_stands_twice_names_no_class(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"crane": ["rocket.jpg"]})
    with pytest.raises(LabelledError, match="crane: neither a label"):
        open_labelled(str(root), ("crane", "heron", "crane"))


def test_folders_that_are_no_class_are_named(tmp_path: Path) -> None:
    cats = {f"cat {n}": ["chelsea.png"] for n in range(7)}
    root = folder_of(tmp_path, {"0": ["coffee.png"], "2": ["rocket.jpg"], **cats})
    with pytest.raises(LabelledError) as caught:
        open_labelled(str(root), ("coffee", "cat"))
    message = str(caught.value)
    assert ": 2, cat 0, cat 1, cat 2, cat 3 and 3 more: neither a label" in message
    assert "model's 2 classes" in message


def test_a_limit_takes_pictures_of_all_classes(tmp_path: Path) -> None:
    names = ["coffee.png", "chelsea.png", "rocket.jpg", "astronaut.png"]
    root = folder_of(tmp_path, {"0": names, "1": names})
    chosen = list(open_labelled(str(root), ("a", "b"), 4))
    assert [target for _, _, target in chosen] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        ("nowhere", ("a", "b"), "nowhere: no such folder"),
        ("empty", ("a", "b"), "empty holds no pictures; it needs one folder a class"),
        ("mnist", ("cat", "dog"), "mnist has the classes 0 to 9"),
    ],
)
def test_data_that_cannot_be_is_wrong_usage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: str,
    labels: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(NoPicturesError, match=message):
        open_labelled(data, labels)


def test_the_accuracy_on_photographs(
    tmp_path: Path, lite0: Classifier, lite0_export: Exported, lite0_runner: Runner
) -> None:
    # The cat stands under the wrong class.
    root = folder_of(
        tmp_path,
        {"espresso": ["coffee.png"], str(MISSILE): ["rocket.jpg"], "tench": ["chelsea.png"]},
    )
    done: list[int] = []
    scored = measure_accuracy(
        lite0_runner,
        lite0_export.manifest.input,
        open_labelled(str(root), lite0.labels),
        done.append,
    )
    assert (scored.data, scored.images) == (tmp_path.name, 3)
    assert scored.top1 == pytest.approx(2 / 3)
    assert scored.top5 == pytest.approx(2 / 3)
    assert done == [3]


def test_the_accuracy_on_digits_is_that_in_torch(
    convnet4: Classifier, convnet4_export: Exported, open_runner
) -> None:
    images, labels = mnist.load("test")
    pixels = (torch.from_numpy(images[:200, None]) / 255 - 0.1307) / 0.3081
    with torch.no_grad():
        ranked = convnet4.module(pixels).argsort(1, descending=True).numpy()
    hits = ranked[:, :5] == labels[:200, None]
    with open_runner(convnet4_export) as runner:
        scored = measure_accuracy(
            runner, convnet4_export.manifest.input, open_labelled("mnist", convnet4.labels, 200)
        )
    assert scored.images == 200
    assert scored.top1 == hits[:, 0].mean()
    assert scored.top5 == hits.any(1).mean()
    assert 0 < scored.top1 < scored.top5 < 1


def test_a_damaged_picture_is_named(
    tmp_path: Path, lite0: Classifier, lite0_export: Exported, lite0_runner: Runner
) -> None:
    root = folder_of(tmp_path, {"espresso": ["coffee.png"]})
    data = (root / "espresso" / "coffee.png").read_bytes()
    (root / "espresso" / "half.png").write_bytes(data[: len(data) // 2])
    labelled = open_labelled(str(root), lite0.labels)
    with pytest.raises(LabelledError, match=r"half\.png: the picture is truncated.*--corrupt skip"):
        measure_accuracy(lite0_runner, lite0_export.manifest.input, labelled)
    left_out: list[str] = []
    scored = measure_accuracy(lite0_runner, lite0_export.manifest.input, labelled, corrupt=left_out)
    assert (scored.images, scored.top1) == (1, 1.0)
    (said,) = left_out
    assert "half.png: the picture is truncated" in said
    (root / "espresso" / "coffee.png").write_bytes(b"no picture")
    with pytest.raises(LabelledError, match="none of its 2 pictures can be decoded"):
        measure_accuracy(lite0_runner, lite0_export.manifest.input, labelled, corrupt=[])


def test_evaluate_counts_the_pictures_that_it_leaves_out(
    tmp_path: Path, imagenet_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of(tmp_path, {"espresso": ["coffee.png"], "missile": ["rocket.jpg"]})
    (root / "espresso" / "half.png").write_bytes(b"\x89PNG")
    table = tmp_path / "labels.csv"
    table.write_text(
        "picture,labels\nespresso/coffee.png,espresso\nespresso/half.png,espresso\n"
        f"missile/rocket.jpg,{MISSILE}\n",
        encoding="utf-8",
    )
    model = ["--repository", str(imagenet_repository), "--model", "efficientnet_lite0", "--json"]
    assert evaluate.main([*model, "--data", str(root), "--corrupt", "fail"]) == 1
    capsys.readouterr()
    for data in (root, table):
        assert evaluate.main([*model, "--data", str(data)]) == 0
        said = capsys.readouterr()
        result = json.loads(said.out)
        assert (result["images"], result["corrupt"]) == (2, 1)
        assert "warning: 1 corrupt picture left out, the first " in said.err


def test_evaluate_passes_over_folders_that_are_no_class(
    tmp_path: Path, imagenet_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = os.fsdecode(b"caf\xe9")
    root = folder_of(tmp_path, {"Espresso": ["coffee.png"], unknown: ["rocket.jpg"]})
    model = ["--repository", str(imagenet_repository), "--model", "efficientnet_lite0", "--json"]
    assert evaluate.main([*model, "--data", str(root)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["images"] == 1
    assert "passed over, as they are none of the classes: caf\\xe9" in said.err
    shutil.rmtree(root / "Espresso")
    assert evaluate.main([*model, "--data", str(root)]) == 1
    assert "caf\\xe9: neither a label, nor a WordNet id" in capsys.readouterr().err


def test_pictures_for_parity_come_from_a_folder(tmp_path: Path, lite0: Classifier) -> None:
    root = folder_of(tmp_path / "photos", {"deep/down": ["coffee.png"], "top": ["rocket.jpg"]})
    (root / "notes.txt").write_text("no picture")
    pictures = from_folder(root, lite0.input)
    assert pictures.images.shape == (2, 224, 224, 3)
    assert pictures.description == "pictures of photos"
    by_hand = for_classifier(lite0).images
    assert any((picture == pictures.images[0]).all() for picture in by_hand)


def test_of_a_large_folder_a_spread_is_taken(tmp_path: Path, convnet4: Classifier) -> None:
    files = folder_of(tmp_path, {"all": ["coins.png"]}) / "all"
    for index in range(MOST + 8):
        shutil.copy(files / "coins.png", files / f"{index}.png")
    assert len(from_folder(tmp_path, convnet4.input)) == MOST


def test_an_empty_folder_is_refused(tmp_path: Path, lite0: Classifier) -> None:
    with pytest.raises(ExportError, match="holds no pictures"):
        from_folder(tmp_path, lite0.input)


def test_without_pictures_of_its_kind_noise_is_used_and_said(
    convnet4: Classifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FOVEATE_MNIST_DIR", str(tmp_path))
    first, second = for_classifier(convnet4), for_classifier(convnet4)
    assert isinstance(first, Pictures)
    assert first.description == "noise with the seed 0"
    assert first.images.shape == (MOST, 28, 28, 1)
    np.testing.assert_array_equal(first.images, second.images)


def test_a_link_that_cannot_be_followed_is_left_out_of_calibration_and_told(
    tmp_path: Path, lite0: Classifier
) -> None:
    imsave(tmp_path / "a.png", skimage.data.coffee(), check_contrast=False)
    (tmp_path / "b.png").symlink_to("b.png")
    with pytest.raises(ExportError, match=r"b\.png: Too many levels of symbolic links"):
        from_folder(tmp_path, lite0.input)
    told: list[str] = []
    assert len(from_folder(tmp_path, lite0.input, corrupt=told)) == 1
    assert told == [f"{tmp_path / 'b.png'}: Too many levels of symbolic links"]
