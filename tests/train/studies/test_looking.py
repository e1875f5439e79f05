"""The studies that look into one network."""

import csv
import io
import json

import pytest
import torch
from PIL import Image

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.commands.train import main
from foveate_train.studies.features import Answers, _answers, most_selective
from foveate_train.studies.filters import ascend


def _study(name, out, *arguments):
    return main(["study", name, "--out", str(out), "--threads", "1", *map(str, arguments)])


def _rows(out):
    return list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))


def test_deeper_layers_tell_digits_apart(tmp_path):
    assert _study("features", tmp_path, "--subset", 640, "--batch-size", 8) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["test_accuracy"] > 0.3
    shares = results["explained_by_the_digit"]
    assert 0 < shares["layer1"] < shares["layer4"] < 1
    rows = _rows(tmp_path)
    assert len(rows) == 10 * (32 + 64 + 128 + 128)
    page = (tmp_path / "README.md").read_text()
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        assert f"({layer}.png)" in page
        # Ten digits by ten channels of 28 pixels and a line between, enlarged twice.
        with Image.open(tmp_path / f"{layer}.png") as picture:
            assert picture.size == (582, 582)
    channel = str(results["channel_of_4_and_9"])
    own = [row for row in rows if (row["layer"], row["channel"]) == ("layer4", channel)]
    assert [float(row["mean"]) for row in own] == results["its_means"]


def test_units_are_climbed_above_what_digits_give(tmp_path):
    assert _study("filters", tmp_path, "--epochs", 1, "--subset", 3000, "--batch-size", 32) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    climbed = torch.tensor(results["degree_of_activation"]["filters"])
    assert (climbed >= torch.tensor(results["degree_on_digits"])).all()
    assert min(results["probability"]["classes"]) > 0.9
    free, penalised = (
        torch.tensor(results["mean_pixel"][name]) for name in ("classes", "classes-penalised")
    )
    assert (penalised < free).all()
    assert len(_rows(tmp_path)) == 50 + 100 + 10 + 10
    for name in ("filters", "neurons", "classes"):
        assert f"({name}.png)" in (tmp_path / "README.md").read_text()
        assert (tmp_path / f"{name}.png").is_file()


def test_these_studies_take_one_seed(tmp_path, capsys):
    assert _study("filters", tmp_path / "out", "--seeds", 0, 1) == 2
    assert "the study filters looks into one network" in capsys.readouterr().err


def test_ascent_finds_the_brightest_answer_of_a_linear_unit():
    weights = torch.linspace(-1, 1, 16).reshape(2, 1, 2, 4)
    spec = InputSpec(
        height=2, width=4, channels=1, resize=4, interpolation="bilinear", mean=(0.5,), std=(0.5,)
    )

    def activations(images):
        return images.flatten(1) @ weights.flatten(1).T

    assert torch.equal(ascend(activations, 2, spec), (weights > 0).float())
    # A pixel of ink changes the input by 2, so a weight has to be worth half the penalty.
    dear = ascend(activations, 2, spec, penalty=1.0)
    # Where ink costs, Adam's steps leave a trace of it.
    assert torch.allclose(dear, (weights > 0.5).float(), atol=0.05)


def test_the_digit_explains_all_or_nothing_of_a_channel():
    labels = torch.arange(10).repeat(7)
    follows, ignores = labels.double(), torch.arange(70).div(10, rounding_mode="floor").double()
    answers = _answers(torch.stack([follows, ignores, 0 * follows], 1), labels)
    assert answers.explained.tolist() == pytest.approx([1, 0, 0])
    assert answers.means[0].tolist() == list(range(10))


def test_the_most_selective_channel_answers_to_its_digits_alone():
    means = torch.zeros(3, 10, dtype=torch.float64)
    means[0] = torch.arange(10)
    means[1, [4, 9]] = torch.tensor([2.0, 3.0], dtype=torch.float64)
    means[2, [4, 9, 7]] = torch.tensor([9.0, 9.0, 8.0], dtype=torch.float64)
    channel, order = most_selective(Answers(means, torch.ones(3)), (4, 9))
    assert channel == 1
    assert order.startswith("9 (3.00), 4 (2.00), ")
