"""The studies that compare, small enough for a test and large enough to show what they find."""

import csv
import io
import json
import math
import signal

import pytest
import torch
from torch import nn

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.commands.train import main
from foveate_train.data.memory import InMemory
from foveate_train.studies import report
from foveate_train.studies.gradients import sizes
from foveate_train.studies.normalisation import STUDY
from foveate_train.studies.results import Results

SMALL = ("--epochs", 2, "--subset", 960, "--batch-size", 8, "--learning-rate", 0.1)
PIXEL = InputSpec(
    height=1, width=1, channels=1, resize=1, interpolation="bilinear", mean=(0.0,), std=(1.0,)
)


def _study(name, out, *arguments):
    return main(["study", name, "--out", str(out), "--threads", "1", *map(str, arguments)])


def _rows(out):
    return list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))


@pytest.fixture(scope="module")
def normalisation(tmp_path_factory):
    """The study with 960 digits seen twice, in batches of 8."""
    out = tmp_path_factory.mktemp("study") / "normalisation"
    assert _study("normalisation", out, *SMALL) == 0
    return out


def test_without_normalisation_ten_layers_do_not_learn_and_with_it_they_do(normalisation):
    last = {row["variant"]: row for row in _rows(normalisation) if row["epoch"] == "2"}
    accuracy = {name: float(row["test_accuracy"]) for name, row in last.items()}
    loss = {name: float(row["loss"]) for name, row in last.items()}
    # The share of the most frequent digit, and the loss of equal probabilities, 2.303.
    assert max(accuracy["none-sigmoid"], accuracy["none-relu"]) < 15
    assert min(loss["none-sigmoid"], loss["none-relu"]) > 2.29
    assert accuracy["batch-relu"] > 50
    assert loss["batch-relu"] < loss["batch-sigmoid"] - 0.3
    assert loss["batch-sigmoid"] < 2.25


def test_eighty_one_convolutions_learn_with_shortcuts_alone(tmp_path):
    # Two would do on some processors, and leave 24 % on others: each rounds in its own way.
    small = ("--epochs", 3, "--subset", 320, "--batch-size", 8, "--learning-rate", 0.005)
    assert _study("residual", tmp_path, *small) == 0
    last = {row["variant"]: row for row in _rows(tmp_path) if row["epoch"] == "3"}
    assert float(last["shortcut"]["test_accuracy"]) > 25 > float(last["plain"]["test_accuracy"])
    assert float(last["shortcut"]["loss"]) < float(last["plain"]["loss"]) - 0.2


def test_the_page_says_what_the_files_hold(normalisation):
    results = Results.model_validate_json((normalisation / "results.json").read_text())
    assert results.training_images == 960
    assert results.test_images == 200
    assert set(results.versions) > {"torch", "python"}
    page = (normalisation / "README.md").read_text()
    assert page == report.page(STUDY, results)
    for row in _rows(normalisation):
        assert f"| {row['test_accuracy']} | {float(row['published']):.2f} |" in page
    assert "--epochs 2 --batch-size 8 --learning-rate 0.1 --subset 960 --seeds 0" in page
    assert "epochs were run" not in page
    for name in ("curves.png", "gradients.png"):
        assert (normalisation / name).read_bytes().startswith(b"\x89PNG")


def test_the_gradient_does_not_reach_the_first_layers_without_normalisation(normalisation):
    results = Results.model_validate_json((normalisation / "results.json").read_text())
    assert {len(sizes) for sizes in results.gradients.values()} == {10}
    first_to_last = {name: sizes[0] / sizes[-1] for name, sizes in results.gradients.items()}
    # Nine sigmoids on the way back, each of a derivative of 0.25 at most.
    assert first_to_last["none-sigmoid"] < 0.25**9
    assert first_to_last["none-relu"] < 0.1
    assert 0.1 < first_to_last["batch-sigmoid"] < 10
    assert 0.1 < first_to_last["batch-relu"] < 10


def test_the_sizes_of_gradients_are_those_of_the_weights_and_leave_the_network_as_it_was():
    # Of a linear network the gradient follows from the softmax by hand.
    module = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten())
    module[0].weight.data[:] = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    data = InMemory(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), torch.tensor([0]), PIXEL)
    wrong = math.exp(2) / (math.exp(1) + math.exp(2))
    assert sizes(module, data) == pytest.approx([wrong])
    assert module[0].weight.flatten().tolist() == [1, 2]
    assert module[0].weight.grad is None


def test_a_finished_study_is_not_run_again(normalisation, capsys):
    before = (normalisation / "results.csv").read_text()
    assert _study("normalisation", normalisation, *SMALL) == 0
    output = capsys.readouterr()
    assert "epoch" not in output.err
    assert (normalisation / "results.csv").read_text() == before


def test_other_settings_do_not_mix_with_what_is_there(normalisation, capsys):
    assert _study("normalisation", normalisation, "--epochs", 3, "--subset", 960) == 1
    error = capsys.readouterr().err
    assert "is of another run, which cannot be resumed: batch_size was 8 and is 128" in error
    assert "epochs was 2 and is 3" in error


def test_an_interrupted_study_goes_on_to_the_same_end(tmp_path, monkeypatch, capsys):
    small = ("--epochs", 1, "--subset", 32, "--batch-size", 16, "--seeds", 3)
    assert _study("normalisation", tmp_path / "whole", *small) == 0

    written = report.write

    def interrupting(*arguments):
        written(*arguments)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(report, "write", interrupting)
        assert _study("normalisation", tmp_path / "parts", *small) == 1
    assert "1 of these 4 epochs were run" in (tmp_path / "parts" / "README.md").read_text()
    assert _study("normalisation", tmp_path / "parts", *small) == 0
    whole, parts = (
        [{**row, "seconds": None} for row in _rows(tmp_path / name)] for name in ("whole", "parts")
    )
    assert whole == parts


def test_seeds_are_runs_of_their_own_with_mean_and_spread():
    runs = [
        {"variant": "batch-relu", "seed": seed, "epochs": [[1, 1.0, accuracy, 2.0]]}
        for seed, accuracy in ((0, 0.5), (1, 0.75))
    ]
    results = Results.model_validate_json(
        json.dumps(
            {
                "study": "normalisation",
                "settings": {**STUDY.settings.model_dump(), "epochs": 1},
                "precision": "float32",
                "training_images": 10,
                "test_images": 4,
                "data_digest": "sha256:0",
                "machine": {},
                "versions": {},
                "gradients": {},
                "runs": runs,
            }
        )
    )
    page = report.page(STUDY, results)
    assert "| 62.50 [50.00, 75.00] | 69.62 |" in page
    assert "- conv + ReLU: not run yet" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", 0], "epochs 0: "),
        (["--subset", 1], "subset 1 is not within 2 and 60000"),
        (["--subset", 70000], "subset 70000 is not within"),
        (["--seeds", 1, 1], "one stands twice"),
        (["--seeds", -1], "seed -1: "),
        (["--device", "abacus"], "--device abacus: cannot be used"),
    ],
)
def test_wrong_usage_is_answered_with_2(arguments, message, tmp_path, capsys):
    assert _study("normalisation", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
