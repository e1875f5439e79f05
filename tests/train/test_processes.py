"""Runs in processes of their own: killed and taken up, or several that train one network."""

import subprocess
import sys

import pytest
import safetensors.torch
import torch

from foveate_train import checkpoint, registry
from foveate_train.data.memory import InMemory
from foveate_train.loop import Training
from foveate_train.run import read_state
from foveate_train.settings import Settings

SETTINGS = Settings(epochs=8, batch_size=64, ema=0.9, precision="float32")

# Every step is kept and told, so that a kill at any moment loses one step at most.
KILLED = """
import sys
from pathlib import Path
import safetensors.torch, torch
from foveate_train import registry
from foveate_train.data.memory import InMemory
from foveate_train.settings import Settings
from foveate_train.loop import Training
from foveate_train.run import write_state
torch.set_num_threads(1)
digits = safetensors.torch.load_file(sys.argv[1])
settings = Settings.model_validate_json(sys.argv[3])
classifier = registry.create("foveate:lenet5")
data = InMemory(digits["images"], digits["labels"], classifier.input, shift=1)
training = Training(classifier, data, settings)
for step in training.steps():
    write_state(Path(sys.argv[2]), settings.model_dump(), training.state())
    print(step.number, float(step.loss).hex(), flush=True)
"""

JOINED = """
import sys
import safetensors.torch, torch
from foveate_train import distributed, registry
from foveate_train.data.memory import InMemory
from foveate_train.settings import Settings
from foveate_train.loop import Training
torch.set_num_threads(1)
digits = safetensors.torch.load_file(sys.argv[1])
with distributed.group():
    assert distributed.world() == 2
    classifier = registry.create("foveate:lenet5")
    data = InMemory(digits["images"], digits["labels"], classifier.input, shift=1)
    training = Training(classifier, data, Settings.model_validate_json(sys.argv[2]))
    losses = [float(step.loss) for step in training.steps()]
    weights = sum(float(p.sum()) for p in classifier.module.parameters())
    # One write, so that the lines of the two processes do not mix.
    sys.stdout.write(f"{distributed.rank()} {weights!r} {losses}\\n")
"""


STAYED = """
import sys
from foveate_train.commands.train import main
from foveate_train.run import Run
Run.is_below_its_start = property(lambda run: run.history[-1].number > 0)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def few(digits, tmp_path_factory):
    """512 digits in memory, and as a file for another process."""
    images, labels = (part[:512].contiguous() for part in digits)
    path = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    safetensors.torch.save_file({"images": images, "labels": labels}, path)
    return images, labels, path


def _losses(few, settings, state=None):
    """Return the losses of the steps, all or those that follow a state, by their numbers."""
    classifier = registry.create("foveate:lenet5")
    data = InMemory(*few[:2], classifier.input, shift=1)
    training = Training(classifier, data, settings)
    if state is not None:
        training.restore(state)
    return {step.number: float(step.loss) for step in training.steps()}


def test_a_killed_run_goes_on_bit_for_bit(few, tmp_path):
    command = [sys.executable, "-c", KILLED, few[2], tmp_path / "state.pt"]
    command.append(SETTINGS.model_dump_json())
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        told = [process.stdout.readline() for _ in range(11)]
        process.kill()
        told += process.stdout.readlines()
    assert process.returncode == -9
    lines = (line.split() for line in told)
    before = {int(number): float.fromhex(loss) for number, loss in lines}
    after = _losses(few, SETTINGS, read_state(tmp_path / "state.pt", SETTINGS.model_dump()))
    # A step may be done and kept, and its line lost with the process.
    assert min(after) - max(before) in {1, 2}
    expected = _losses(few, SETTINGS)
    assert {number: expected[number] for number in before | after} == before | after
    assert [*before, *after][-1] == len(expected) == 64


def test_two_processes_train_as_one(few):
    settings = SETTINGS.model_copy(update={"epochs": 1, "ema": None, "clip_norm": 1.0})
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--standalone", "--no-python", sys.executable, "-c", JOINED),
            *(few[2], settings.model_dump_json()),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = sorted(line.split(" ", 2) for line in done.stdout.splitlines())
    assert [rank for rank, _, _ in answers] == ["0", "1"]
    assert len({(weights, losses) for _, weights, losses in answers}) == 1
    joined = torch.tensor([float(loss) for loss in answers[0][2].strip("[]").split(",")])
    # A sum of float32 depends on its order; nothing else differs.
    assert torch.allclose(joined, torch.tensor([*_losses(few, settings).values()]), rtol=1e-4)


def test_two_processes_agree_that_a_start_was_better(photographs, weights, tmp_path):
    out = tmp_path / "own"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--standalone", "--no-python", sys.executable, "-c", STAYED),
            *("finetune", photographs, "--model", "timm:mobilenetv3_small_050.lamb_in1k"),
            *("--weights", weights, "--out", out, "--epochs", "2", "--batch-size", "6"),
            *("--workers", "0", "--threads", "1", "--device", "cpu"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(out).metrics["steps"] == 0
