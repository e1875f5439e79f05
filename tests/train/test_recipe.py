"""What fine-tuning does where no option says: from few pictures, unbalanced classes, stages."""

from itertools import islice
from threading import Event

import pytest
import torch

from foveate_train import checkpoint, recipe
from foveate_train.data.batches import steps
from foveate_train.data.folder import FolderData, scan
from foveate_train.data.kept import Kept, made
from foveate_train.fit import fit
from foveate_train.head import with_new_head
from foveate_train.loop import Training
from foveate_train.progress import StepProgress
from foveate_train.run import Run
from foveate_train.stages import Rest
from foveate_train.transfer import Start

NETWORK = "timm:mobilenetv3_small_050.lamb_in1k"
CPU = torch.device("cpu")


@pytest.fixture
def planned(photographs, weights):
    """A function that plans for pictures, by which it is judged too; it returns what was said."""

    def plan(given, pictures=None):
        pictures = pictures or scan(photographs, "fail")
        classifier, head = with_new_head(
            NETWORK, pictures.classes, weights=str(weights), seed=0, arguments={}
        )
        said = []
        found = recipe.plan(
            *(classifier, head, (pictures, pictures), given),
            workers=0,
            device=CPU,
            say=said.append,
        )
        return *found, "\n".join(said)

    return plan


def test_what_was_kept_of_pictures_is_what_the_frozen_stages_make(planned, photographs):
    plan, settings, said = planned({})
    module, frozen = plan.classifier.module, plan.backbone.frozen
    assert f"the stages up to {frozen[-1]} stay as they are" in said
    pictures = FolderData(scan(photographs, "fail"), plan.classifier.input, settings, workers=0)
    assert len(plan.data.views) == 8
    for number in (0, 1, 7):
        view = pictures.view(settings.seed, number) if number else pictures.all()
        assert torch.equal(plan.data.views[number], made(module, frozen, view))
    assert not torch.equal(plan.data.views[1], plan.data.views[7])
    with torch.inference_mode():
        whole = torch.cat([module(batch.images) for batch in pictures.all()])
        rest = torch.cat([Rest(module, frozen)(batch.images) for batch in plan.watched.all()])
    # They are kept in float16.
    assert torch.allclose(rest, whole, rtol=0.01, atol=0.01)


def test_the_same_is_learnt_where_nothing_is_kept(planned, monkeypatch):
    kept, _, _ = planned({})
    monkeypatch.setattr(recipe, "_KEPT_BYTES", 0)
    plan, settings, _ = planned({"epochs": 1, "batch_size": 8})
    assert kept.backbone.passed
    assert not plan.backbone.passed
    assert plan.backbone.frozen == kept.backbone.frozen
    before = {key: value.clone() for key, value in plan.classifier.module.state_dict().items()}
    training = Training(plan.classifier, plan.data, settings, backbone=plan.backbone, device=CPU)
    assert len(list(islice(training.steps(), 2))) == 2
    changed = {
        key
        for key, value in training.result.module.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert plan.backbone.head <= changed
    assert not any(key.startswith(f"{name}.") for key in changed for name in plan.backbone.frozen)


def test_an_epoch_of_several_passes_sees_every_picture_in_as_many_views():
    views = torch.arange(4)[:, None] * 100 + torch.arange(5)
    data = Kept(views[:, :, None], torch.arange(5), "none", passes=3)
    first, second = (
        torch.cat([batch.images for batch in data.epoch(0, epoch, 4)]).flatten() for epoch in (1, 2)
    )
    assert len(data) == len(first) == 15
    for seen in (first, second):
        assert torch.equal(torch.bincount(seen.long() % 100), torch.full((5,), 3))
        assert len(seen.unique()) == 15
    assert not torch.equal(first.sort().values, second.sort().values)
    batch = next(data.epoch(0, 1, 4, start=2))
    assert torch.equal(batch.images.flatten() % 100, batch.labels.float())
    assert torch.equal(torch.cat([b.images for b in data.all()]).flatten(), torch.arange(5.0))


def test_unbalanced_classes_count_alike(planned, own):
    for file in sorted((own / "animals").rglob("*.jpg"))[2:]:
        file.unlink()
    plan, settings, said = planned({"epochs": 1}, scan(own, "fail"))
    assert settings.balance
    assert plan.weights == pytest.approx((10 / 4, 10 / 16))
    assert "classes of 2 to 8 pictures count alike in the loss" in said
    plan, settings, _ = planned({"epochs": 1, "balance": False}, scan(own, "fail"))
    assert plan.weights is None
    assert planned({"epochs": 1})[0].weights is None


@pytest.mark.parametrize("counts", [[1, 1], [8, 8, 8], [80, 80], [400, 400, 400]])
def test_few_pictures_get_as_many_steps_as_more(counts):
    start = Start(("one",), solved=True, suffices=False)
    settings = recipe.settings_for(counts, {}, start, few=True)
    epoch = steps(
        sum(counts) * recipe.passes(sum(counts), settings.batch_size), settings.batch_size
    )
    assert epoch >= 10
    assert epoch * settings.epochs >= 80
    assert settings.epochs >= 3
    assert recipe.settings_for(counts, {"epochs": 1}, start, few=True).epochs == 1


@pytest.mark.parametrize(
    ("start", "few", "rate", "frozen"),
    [
        # What comes after a stage learns with the head, which needs no time of its own.
        (Start(("one",), solved=True, suffices=False), True, 1.0, 0),
        (Start(("one",), solved=True, suffices=False), False, 1.0, 0),
        # The head's features are the best there is: with few to judge by nothing else learns.
        (Start(("one",), solved=True, suffices=True), True, 1.0, 8),
        (Start(("one",), solved=True, suffices=True), False, 1.0, 2),
        # A head that starts at nothing would send noise through the backbone.
        (Start(("one",), solved=False, suffices=False), True, 1.0, 2),
        (Start((), solved=False, suffices=False), True, 0.1, 2),
        (Start((), solved=True, suffices=False), True, 0.1, 0),
    ],
)
def test_what_rests_follows_from_the_comparison(start, few, rate, frozen):
    settings = recipe.settings_for([12, 12], {}, start, few=few)
    assert (settings.backbone_rate, settings.epochs, settings.frozen_epochs) == (rate, 8, frozen)
    given = {"backbone_rate": 0.5, "frozen_epochs": 3}
    settings = recipe.settings_for([12, 12], given, start, few=few)
    assert (settings.backbone_rate, settings.epochs, settings.frozen_epochs) == (0.5, 11, 3)


@pytest.mark.parametrize("given", [{}, {"patience": 2}])
def test_the_result_is_never_worse_than_its_start(planned, tmp_path, given):
    # Such a rate destroys a network.
    plan, settings, _ = planned({"epochs": 2, "learning_rate": 10, **given})
    assert plan.selects == bool(given)
    before = {key: value.clone() for key, value in plan.classifier.module.state_dict().items()}
    result = fit(plan, settings, tmp_path / "own", device=CPU)
    read = checkpoint.load(tmp_path / "own")
    assert result.metrics["epochs"] == 0
    assert result.metrics["validation_accuracy"] > 0.9
    state = read.classifier.module.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in state.items())


def test_the_last_epoch_is_the_result_where_it_is_no_worse(planned, tmp_path):
    plan, settings, _ = planned({"epochs": 2})
    result = fit(plan, settings, tmp_path / "own", device=CPU)
    assert result.metrics["epochs"] == 2
    assert result.by_class() == "animals 100%, things 100%"


def test_a_run_goes_on_bit_for_bit(planned, tmp_path):
    def run(path):
        plan, settings, _ = planned({"epochs": 3})
        training = Training(
            *(plan.classifier, plan.data, settings), backbone=plan.backbone, device=CPU
        )
        return Run(training, plan.watched, path, from_start=True)

    def epochs(run):
        return run.epochs(StepProgress(done=run.training.number, total=run.training.total), Event())

    whole, first = run(tmp_path / "whole.pt"), run(tmp_path / "parts.pt")
    assert [epoch.number for epoch in epochs(whole)] == [0, 1, 2, 3]
    assert [epoch.number for epoch in islice(epochs(first), 3)] == [0, 1, 2]
    second = run(tmp_path / "parts.pt")
    assert [epoch.number for epoch in epochs(second)] == [3]
    assert [each.accuracy for each in second.history] == [each.accuracy for each in whole.history]
    assert second.tally == whole.tally == run(tmp_path / "parts.pt").tally
    one, other = (each.training.result.module.state_dict() for each in (whole, second))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
