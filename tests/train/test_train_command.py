import json
import re
import signal

import pytest
import torch

from foveate_train import checkpoint
from foveate_train.commands import mnist as command
from foveate_train.commands.train import main
from foveate_train.data import mnist
from foveate_train.training import evaluate, train


@pytest.fixture
def few(digits, test_digits, monkeypatch):
    """MNIST with its first 1,024 training and 500 test pictures, for speed."""
    parts = {"train": (digits, 1024), "test": (test_digits, 500)}

    def load(split, root):
        (images, labels), count = parts[split]
        return images[:count, 0].numpy(), labels[:count].numpy()

    monkeypatch.setattr(mnist, "load", load)


def _run(out, *arguments):
    return main(["mnist", "--model", "foveate:convnet4", "--out", str(out), *arguments])


def test_training_writes_a_checkpoint_with_what_was_measured(few, test_digits, tmp_path, capsys):
    assert _run(tmp_path / "digits", "--epochs", "2", "--seed", "4", "--batch-size", "64") == 0
    output = capsys.readouterr()
    read = checkpoint.load(tmp_path / "digits")
    assert read.metrics["epochs"] == 2
    assert read.metrics["steps"] == 32
    accuracy = evaluate(read.classifier, *(part[:500] for part in test_digits))
    assert read.metrics["test_accuracy"] == accuracy > 0.5
    assert f"test accuracy {accuracy:.2%} after 32 steps" in output.out
    assert output.out.endswith(f"checkpoint {tmp_path / 'digits'}\n")
    assert "epoch 1/2: loss " in output.err
    assert "epoch 2/2: loss " in output.err
    assert read.record.seed == 4
    assert read.record.data_digest.startswith("sha256:")


def test_json_is_alone_on_stdout(few, tmp_path, capsys):
    assert _run(tmp_path / "digits", "--json", "--argument", "pool=true") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["checkpoint"] == str(tmp_path / "digits")
    assert result["epochs"] == 1
    assert 0 < result["test_accuracy"] < 1
    assert result["seconds"] > 0


def test_the_same_seed_gives_the_same_weights(few, tmp_path):
    for name in ("a", "b"):
        assert _run(tmp_path / name, "--seed", "9") == 0
    digests = {checkpoint.load(tmp_path / name).record.sha256 for name in ("a", "b")}
    assert len(digests) == 1


def test_ctrl_c_writes_what_there_is(few, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        for step in train(*arguments):
            if step.number == 3:
                signal.raise_signal(signal.SIGINT)
            yield step

    monkeypatch.setattr(command, "train", interrupted)
    usual = signal.getsignal(signal.SIGINT)
    assert _run(tmp_path / "digits", "--epochs", "5") == 1
    assert signal.getsignal(signal.SIGINT) is usual
    output = capsys.readouterr().out
    assert "interrupted after 3 steps" in output
    assert str(tmp_path / "digits") in output
    metrics = checkpoint.load(tmp_path / "digits").metrics
    assert (metrics["epochs"], metrics["steps"]) == (0, 3)
    assert "test_accuracy" not in metrics


def test_a_second_ctrl_c_interrupts(few, tmp_path, monkeypatch):
    def interrupted(*arguments):
        for step in train(*arguments):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            yield step

    monkeypatch.setattr(command, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "digits")
    assert not (tmp_path / "digits").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "foveate:convnet5"], "foveate:convnet4"),
        (["--argument", "pool"], "'pool' is not of the form name=value"),
        (["--argument", "depth=5"], "no argument 'depth'; its arguments are pool"),
        (["--epochs", "0"], "epochs 0: .*greater than or equal to 1"),
        (["--batch-size", "1"], "batch_size 1: "),
        (["--learning-rate", "-1"], r"learning_rate -1\.0: "),
        (["--seed", "-5"], "seed -5: "),
        (["--threads", "0"], "threads 0 is below 1"),
        (
            ["--model", "timm:resnet18", "--argument", "num_classes=10"],
            "timm:resnet18 takes 224x224x3 pictures; MNIST's are 28x28x1",
        ),
    ],
)
def test_wrong_usage_is_answered_with_2(arguments, message, tmp_path, capsys):
    assert _run(tmp_path / "digits", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("foveate train: ")
    assert re.search(message, error)
    assert not (tmp_path / "digits").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["imagenet"], ["mnist"], ["mnist", "--model", "foveate:lenet5", "--epoch", "x"]],
)
def test_arguments_that_cannot_be_parsed_exit_with_2(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


def test_what_cannot_be_had_is_answered_with_1(few, tmp_path, capsys, monkeypatch):
    assert _run(tmp_path / "digits", "--weights", str(tmp_path / "none.pth")) == 1
    assert "there is no such file" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert _run(tmp_path) == 1
    assert "is there already and is no checkpoint" in capsys.readouterr().err
    monkeypatch.undo()
    assert _run(tmp_path / "digits", "--data", str(tmp_path)) == 1
    assert "train-images-idx3-ubyte: No such file" in capsys.readouterr().err


def test_training_goes_on_from_weights(few, tmp_path):
    assert _run(tmp_path / "first", "--epochs", "2") == 0
    weights = str(tmp_path / "first" / "model.safetensors")
    assert _run(tmp_path / "second", "--weights", weights, "--learning-rate", "1e-4") == 0
    first, second = (checkpoint.load(tmp_path / name).metrics for name in ("first", "second"))
    assert second["train_loss"] < first["train_loss"]


def test_threads_are_set(few, tmp_path):
    assert _run(tmp_path / "digits", "--threads", "2") == 0
    assert torch.get_num_threads() == 2
