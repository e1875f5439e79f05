"""What a run says where no terminal shows a bar."""

import torch

from foveate_train import progress
from foveate_train.loop import Step
from foveate_train.progress import StepProgress


def test_steps_are_reported_where_standard_error_is_a_file(monkeypatch, capsys):
    step = Step(number=7, total=20, epoch=2, ends_epoch=False, images=8, loss=torch.tensor(0.5))
    with StepProgress(done=0, total=20) as shown:
        shown.describe("with shortcuts, seed 0")
        shown.step(step)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(progress, "_INTERVAL", 0)
        shown.step(step)
    expected = "with shortcuts, seed 0, epoch 2, step 7 of 20: loss 0.5000\n"
    assert capsys.readouterr().err == expected
