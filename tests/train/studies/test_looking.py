"""The studies that look into one network."""

import csv
import io
import json

import pytest
import torch
from PIL import Image

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.ascent import ascend
from foveate_train.commands.train import main
from foveate_train.studies import filters
from foveate_train.studies.features import Answers, answers_of, bar, most_selective, strength
from foveate_train.studies.filters import flat


def _study(name, out, *arguments):
    return main(["study", name, "--out", str(out), "--threads", "1", *map(str, arguments)])


def _rows(out):
    return list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))


def test_deeper_layers_tell_digits_apart(tmp_path):
    assert _study("features", tmp_path, "--subset", 2000, "--batch-size", 16) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["test_accuracy"] > 0.5
    assert results["test_images"] == 333
    shares = results["explained_by_the_digit"]
    assert 0 < shares["layer1"] < shares["layer4"] < 1
    rows = _rows(tmp_path)
    assert len(rows) == 10 * (32 + 64 + 128 + 128)
    page = (tmp_path / "README.md").read_text()
    for name in ("selective", "first", "layer1", "layer2", "layer3", "layer4"):
        assert f"({name}.png)" in page
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300
    selective = results["selective"]
    channel = str(selective["channel"])
    own = [row for row in rows if (row["layer"], row["channel"]) == ("layer4", channel)]
    assert [float(row["mean"]) for row in own] == selective["means"]


def test_units_are_climbed_above_what_digits_give(tmp_path, monkeypatch):
    monkeypatch.setattr(filters, "_SIDE", 32)
    monkeypatch.setattr(filters, "_OF_A_STAGE", 2)
    assert _study("filters", tmp_path, "--epochs", 1, "--subset", 3000, "--batch-size", 32) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    climbed = torch.tensor(results["degree_of_activation"]["filters"])
    assert (climbed >= torch.tensor(results["degree_on_digits"])).all()
    small = results["classes"]["small"]
    assert list(small) == ["0", "0.1", "0.3", "0.6"]
    assert min(small["0"]["probability"]) > 0.9
    ink = [sum(each["ink"]) for each in small.values()]
    assert ink == sorted(ink, reverse=True)
    # Where the ascent began behind the ReLU, these would have stayed as they were.
    assert results["silent_on_grey"] > 10
    assert len(results["flat"]["neurons"]) < 5
    assert len(_rows(tmp_path)) == 50 + 100 + 50
    page = (tmp_path / "README.md").read_text()
    for name in ("filters", "neurons", "best", "classes-small", "classes-best", "photographs"):
        assert f"({name}.png)" in page
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

    # Ink of its own differs from its neighbours on all sides, which costs more than it brings.
    assert ascend(activations, 2, spec, variation=5.0).std((2, 3)).amax() < 0.1


def test_the_digit_explains_all_or_nothing_of_a_channel():
    labels = torch.arange(10).repeat(7)
    follows, ignores = labels.double(), torch.arange(70).div(10, rounding_mode="floor").double()
    answers = answers_of(torch.stack([follows, ignores, 0 * follows], 1), labels)
    assert answers.explained.tolist() == pytest.approx([1, 0, 0])
    assert answers.means[0].tolist() == list(range(10))


def test_the_most_selective_channel_answers_to_its_digits_alone():
    means = torch.zeros(3, 10, dtype=torch.float64)
    means[0] = torch.arange(10)
    means[1, [4, 9]] = torch.tensor([2.0, 3.0], dtype=torch.float64)
    means[2, [4, 9, 7]] = torch.tensor([9.0, 9.0, 8.0], dtype=torch.float64)
    assert most_selective(Answers(means, torch.ones(3)), (4, 9)) == 1


def test_the_strength_of_a_channel_is_its_distance_and_its_probability():
    labels = torch.arange(10).repeat(4)
    own = torch.isin(labels, torch.tensor([4, 9]))
    above = strength(own.double() + labels.double() / 100, labels)
    assert above["probability"] == 1
    assert above["means"][4] == pytest.approx(1.04)
    assert above["deviations"] == [0] * 10
    assert strength(-own.double(), labels)["probability"] == 0
    # Levels of 0 and 2 for the one, of -2 and 0 for the other: means 2 apart, deviations 1.
    levels = torch.where(torch.arange(40) < 20, 1.0, -1.0).double() + own.double() * 2 - 1
    distance = strength(levels, labels)["distance"]
    assert distance == pytest.approx(2 / ((8 / 7 + 32 / 31) / 2) ** 0.5, abs=1e-3)


def test_a_bar_stands_at_90_degrees_and_lies_at_0():
    lying, standing = bar(0)[0].float(), bar(90)[0].float()
    assert torch.equal(lying, standing.T)
    rows, columns = (lying > 127).nonzero().T
    assert int(columns.max() - columns.min()) + 1 == 16
    assert int(rows.max() - rows.min()) + 1 in {2, 3, 4}
    # To the right and up.
    rising = bar(45)[0]
    assert rising[9, 18] > 0 == rising[9, 9]


def test_flat_pictures_are_told_by_their_number():
    pictures = torch.full((3, 1, 4, 4), 0.5)
    pictures[1, 0, 0] = 1
    assert flat(pictures) == [0, 2]
