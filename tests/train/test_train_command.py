import json
import re
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from foveate_train import checkpoint
from foveate_train.commands.train import main
from foveate_train.data import mnist
from foveate_train.data.memory import InMemory
from foveate_train.loop import Training, evaluate


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
    spec = read.classifier.input
    test = InMemory(*(part[:500] for part in test_digits), spec)
    accuracy = evaluate(read.classifier.module, test)
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


def _interrupting(monkeypatch, number, signals=1):
    """Have Ctrl-C pressed during a step."""
    steps = Training.steps

    def interrupted(training):
        for step in steps(training):
            if step.number == number:
                for _ in range(signals):
                    signal.raise_signal(signal.SIGINT)
            yield step

    monkeypatch.setattr(Training, "steps", interrupted)


def test_ctrl_c_writes_what_there_is_and_resume_goes_on(few, tmp_path, monkeypatch, capsys):
    assert _run(tmp_path / "whole", "--epochs", "2") == 0
    usual = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        _interrupting(patch, 3)
        assert _run(tmp_path / "digits", "--epochs", "2") == 1
    assert signal.getsignal(signal.SIGINT) is usual
    output = capsys.readouterr().out
    assert "interrupted (--resume goes on) after 3 steps" in output
    metrics = checkpoint.load(tmp_path / "digits").metrics
    assert (metrics["epochs"], metrics["steps"]) == (0, 3)
    assert "test_accuracy" not in metrics
    assert _run(tmp_path / "digits", "--epochs", "2", "--resume") == 0
    whole, parts = (checkpoint.load(tmp_path / name).record for name in ("whole", "digits"))
    assert parts.sha256 == whole.sha256
    assert parts.metrics["train_loss"] == whole.metrics["train_loss"]


def test_a_second_ctrl_c_interrupts(few, tmp_path, monkeypatch):
    _interrupting(monkeypatch, 1, signals=2)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "digits")
    assert not (tmp_path / "digits").exists()


def test_held_out_pictures_choose_the_epoch(few, tmp_path, capsys):
    arguments = ("--holdout", "256", "--epochs", "8", "--patience", "2", "--batch-size", "64")
    assert _run(tmp_path / "digits", *arguments) == 0
    told = re.findall(r"epoch (\d)/8: .*validation accuracy (\S+)%", capsys.readouterr().err)
    best, last = (checkpoint.load(tmp_path / p).metrics for p in ("digits", "digits.run/last"))
    highest = max(float(share) for _, share in told) / 100
    assert best["validation_accuracy"] == pytest.approx(highest, abs=1e-4)
    assert last["epochs"] == len(told)
    assert best["epochs"] <= last["epochs"]
    assert 0.5 < best["test_accuracy"] < 1
    assert "test_accuracy" not in last


def test_the_log_can_be_read_by_tensorboard(few, tmp_path):
    assert _run(tmp_path / "digits", "--epochs", "2", "--tensorboard") == 0
    log = EventAccumulator(str(tmp_path / "digits.run" / "tensorboard")).Reload()
    accuracies = log.Scalars("accuracy/test_accuracy")
    assert [point.step for point in accuracies] == [1, 2]
    expected = checkpoint.load(tmp_path / "digits").metrics["test_accuracy"]
    assert accuracies[-1].value == pytest.approx(expected)


def test_resuming_needs_the_same_run(few, tmp_path, capsys):
    assert _run(tmp_path / "digits", "--resume") == 1
    assert "there is no run to resume" in capsys.readouterr().err
    assert _run(tmp_path / "digits") == 0
    assert _run(tmp_path / "digits", "--resume", "--seed", "1") == 1
    assert "seed was 0 and is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "foveate:convnet5"], "foveate:convnet4"),
        (["--argument", "pool"], "'pool' is not of the form name=value"),
        (["--argument", "depth=5"], "no argument 'depth'; its arguments are pool"),
        (["--epochs", "0"], "--epochs 0: .*greater than or equal to 1"),
        (["--batch-size", "1"], "--batch-size 1: "),
        (["--learning-rate", "-1"], "--learning-rate -1: "),
        (["--optimizer", "lion"], "--optimizer lion: Input should be 'adamw' or 'sgd'"),
        (["--patience", "3"], "--patience 3 needs pictures to judge by: --holdout"),
        (["--holdout", "60000"], "--holdout 60000 is above 59872: a batch has to remain"),
        (["--device", "abacus"], "--device abacus: cannot be used"),
        (["--seed", "-5"], "seed -5: "),
        (["--threads", "0"], "--threads 0: Input should be greater than or equal to 1"),
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
    [[], ["imagenet"], ["mnist"], ["mnist", "--model", "foveate:lenet5", "--epoch", "1"]],
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
