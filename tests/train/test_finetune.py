"""Fine-tuning on an image folder, down to the bundle; and what a folder can have wrong."""

import multiprocessing
import re
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from foveate_export.commands import export
from foveate_runtime.bundle.bundle import Bundle
from foveate_train import checkpoint, registry
from foveate_train.commands.train import main
from foveate_train.data import draws, folder
from foveate_train.data.folder import FolderData, scan
from foveate_train.errors import ArgumentsError, DataError
from foveate_train.head import with_new_head
from foveate_train.loop import Backbone, Training
from foveate_train.run import Run
from foveate_train.settings import Settings

NETWORK = "timm:mobilenetv3_small_050.lamb_in1k"
SPEC = registry.create("foveate:resnet18", weights="random:0", num_classes=2).input


def _finetune(data, out, weights, *arguments):
    small = ("--epochs", "3", "--frozen-epochs", "1", "--batch-size", "6", "--workers", "0")
    return main(
        [
            *("finetune", str(data), "--model", NETWORK, "--weights", str(weights)),
            *("--out", str(out), "--threads", "1", *small, *arguments),
        ]
    )


def test_a_checkpoint_has_the_folders_classes_and_the_backbones_input(
    photographs, weights, tmp_path, capsys
):
    assert _finetune(photographs, tmp_path / "own", weights, "--holdout", "0.25") == 0
    output = capsys.readouterr()
    assert len(re.findall(r"epoch \d/3: loss .*validation accuracy", output.err)) == 3
    # Then all 16 learn, and what judged says nothing of that.
    said = re.search(r"validation accuracy (.*)%; now all 16 pictures are learnt from", output.err)
    assert said
    assert f"validation accuracy {said[1]}% after" in output.out
    assert len(re.findall(r"epoch \d/3: loss [\d.]+, \d+ images/s", output.err)) == 3
    assert "warning: 4 pictures to judge by are few" in output.err
    assert re.search(r"right of each class: \w+ \d+%, \w+ \d+%\n", output.err)
    read = checkpoint.load(tmp_path / "own")
    assert read.classifier.labels == ("animals", "things")
    assert read.classifier.input == registry.create(NETWORK, weights="random:0").input
    assert read.metrics["validation_accuracy"] > 0.4
    assert read.record.data_digest == scan(photographs, "fail").digest

    arguments = [str(tmp_path / "own"), "--repository", str(tmp_path), "--name", "bundle"]
    assert export.main(arguments) == 0
    bundle = Bundle.open(tmp_path / "bundle" / "1")
    assert bundle.labels == ("animals", "things")
    spec = read.classifier.input
    assert (bundle.manifest.input.height, bundle.manifest.input.resize) == (
        spec.height,
        spec.resize,
    )


def test_the_head_is_what_follows_the_classes_and_the_rest_is_pretrained(weights):
    classifier, head = with_new_head(
        NETWORK, ["a", "b", "c"], weights=str(weights), seed=0, arguments={}
    )
    assert head == {"classifier.weight", "classifier.bias"}
    original = registry.create(NETWORK, weights=str(weights)).module.state_dict()
    for key, value in classifier.module.state_dict().items():
        assert (key in head) != (value.shape == original[key].shape)
        assert key in head or torch.equal(value, original[key])
    # A thousand new classes are as new as any other number.
    _, same = with_new_head(
        NETWORK, [str(i) for i in range(1000)], weights=str(weights), seed=0, arguments={}
    )
    assert same == head
    with pytest.raises(ArgumentsError, match=r"foveate:lenet5 cannot have 3 classes.*num_classes"):
        with_new_head("foveate:lenet5", "abc", weights=None, seed=0, arguments={})


def test_a_head_holds_what_it_learnt_and_not_its_random_start(photographs, weights):
    listed = scan(photographs, "fail")

    def taught(seed):
        classifier, head = with_new_head(
            NETWORK, listed.classes, weights=str(weights), seed=seed, arguments={}
        )
        settings = Settings(
            epochs=8, frozen_epochs=8, batch_size=16, learning_rate=2e-3, schedule="constant"
        )
        data = FolderData(listed, classifier.input, settings, workers=0)
        for _ in Training(classifier, data, settings, backbone=Backbone(head)).steps():
            pass
        return classifier.module.get_parameter("classifier.weight").detach().flatten()

    # The seed draws the start alone: the backbone and the pictures are the same.
    one, other = map(taught, (1, 2))
    assert torch.cosine_similarity(one, other, dim=0) > 0.9


@pytest.mark.parametrize("epochs", ["1", "2"])
def test_few_epochs_leave_fewer_frozen(photographs, weights, tmp_path, epochs):
    arguments = ("--model", NETWORK, "--weights", str(weights), "--out", str(tmp_path / "out"))
    assert (
        main(["finetune", str(photographs), *arguments, "--workers", "0", "--epochs", epochs]) == 0
    )
    assert checkpoint.load(tmp_path / "out").metrics["epochs"] >= 1


def test_the_backbone_rests_then_learns_at_its_own_rate(photographs, weights):
    listed = scan(photographs, "fail")
    classifier, head = with_new_head(
        NETWORK, listed.classes, weights=str(weights), seed=0, arguments={}
    )
    settings = Settings(
        epochs=2,
        frozen_epochs=1,
        batch_size=8,
        learning_rate=0.01,
        backbone_rate=0.5,
        schedule="constant",
        precision="float32",
    )
    data = FolderData(listed, classifier.input, settings, workers=0)
    training = Training(classifier, data, settings, backbone=Backbone(head))

    def rates():
        groups = training._optimizer.param_groups
        return [groups[0]["lr"], groups[-1]["lr"]]

    def state():
        return {k: v.clone() for k, v in training.result.module.state_dict().items()}

    def changed(before, after):
        return {key for key in before if not torch.equal(before[key], after[key])}

    begin = state()
    steps = training.steps()
    while not next(steps).ends_epoch:
        pass
    frozen = state()
    assert changed(begin, frozen) == head
    assert rates() == [0.01, 0]
    list(steps)
    assert rates() == [0.01, 0.005]
    moved = changed(frozen, state())
    assert {"conv_stem.weight", "bn1.weight"} < moved
    # Statistics of a thousand classes are not replaced by those of a few pictures.
    assert not any("running" in key for key in moved)


def test_the_backbone_warms_up_when_it_is_unfrozen(photographs, weights):
    listed = scan(photographs, "fail")
    classifier, head = with_new_head(
        NETWORK, listed.classes, weights=str(weights), seed=0, arguments={}
    )
    settings = Settings(
        epochs=4, frozen_epochs=2, batch_size=4, learning_rate=0.01, schedule="cosine"
    )
    data = FolderData(listed, classifier.input, settings, workers=0)
    training = Training(classifier, data, settings, backbone=Backbone(head))
    rates = [training._optimizer.param_groups[-1]["lr"] for _ in training.steps()]
    begins = training.total // 2
    assert rates[:begins] == [0] * begins
    # As any schedule does, and up to a tenth of the head's highest.
    assert rates[begins] == pytest.approx(0.001 / 25)
    assert max(rates) == pytest.approx(0.001)
    assert rates[-1] < 0.0001


def test_batches_do_not_depend_on_the_workers(photographs):
    listed = scan(photographs, "fail")
    settings = Settings(policy="trivialaugment", erase=0.5)
    here, there = (
        list(FolderData(listed, SPEC, settings, workers=workers).epoch(3, 2, 8))
        for workers in (0, 2)
    )
    assert [batch.total for batch in here] == [8, 8]
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    again = list(FolderData(listed, SPEC, settings, workers=0).epoch(3, 3, 8))
    assert not torch.equal(here[0].images, again[0].images)
    late = list(FolderData(listed, SPEC, settings, workers=0).epoch(3, 2, 8, start=1))
    assert torch.equal(late[0].images, here[1].images)


def test_a_pictures_seed_is_drawn_when_it_is_needed(photographs, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        folder, "derive", lambda *purpose: drawn.append(purpose) or draws.derive(*purpose)
    )
    data = FolderData(scan(photographs, "fail"), SPEC, Settings(), workers=0)
    next(data.epoch(0, 1, 4))
    assert len(drawn) == 4


def test_the_workers_stay(photographs):
    data = FolderData(scan(photographs, "fail"), SPEC, Settings(), workers=1)
    workers = []
    for epoch in (1, 2):
        assert sum(len(batch.labels) for batch in data.epoch(0, epoch, 4)) == 16
        workers.append({child.pid for child in multiprocessing.active_children()})
    assert workers[0] == workers[1] != set()


def test_going_on_decodes_nothing_again(photographs, weights, tmp_path, monkeypatch):
    looked = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(
        JpegImageFile, "draft", lambda *wanted: looked.append(wanted) or draft(*wanted)
    )
    for more, count in ([], 16), (["--resume"], 16):
        assert _finetune(photographs, tmp_path / "out", weights, "--epochs", "1", *more) == 0
        assert len(looked) == count


def test_a_split_takes_its_share_of_every_class(photographs):
    listed = scan(photographs, "fail")
    training, held = listed.split(0.25, seed=0)
    assert sorted(training.pictures + held.pictures) == sorted(listed.pictures)
    assert [sum(each.label == label for each in held.pictures) for label in (0, 1)] == [2, 2]
    assert training.digest != held.digest
    # However small or large the share is, there is one of every class in both parts.
    for share, counts in ((0.01, [1, 1]), (0.99, [7, 7])):
        assert listed.split(share, seed=0)[1].counts == counts


def test_a_sample_has_as_many_of_every_class(photographs):
    listed = scan(photographs, "fail")
    assert listed.sample(3, seed=0).counts == [3, 3]
    assert listed.sample(3, seed=0) == listed.sample(3, seed=0) != listed.sample(3, seed=1)
    assert listed.sample(9, seed=0) == listed


def test_two_pictures_of_a_class_are_one_to_train_on_and_one_to_judge_by(own):
    for file in sorted((own / "animals").rglob("*.jpg"))[2:]:
        file.unlink()
    training, held = scan(own, "fail").split(0.2, seed=0)
    assert (training.counts, held.counts) == ([1, 6], [1, 2])
    min((own / "animals").rglob("*.jpg")).unlink()
    with pytest.raises(DataError, match=r"class animals has 1 picture; .*--validation FOLDER"):
        scan(own, "fail").split(0.2, seed=0)


def test_corrupt_files_are_reported_and_left_out_or_end_it(own, weights, tmp_path, capsys):
    (own / "animals" / "notes.txt").write_text("no picture, and not named as one")
    (own / "animals" / "00.jpg").write_bytes((own / "animals" / "01.jpg").read_bytes()[:700])
    (own / "things" / "10.jpg").write_text("no picture")
    assert _finetune(own, tmp_path / "out", weights) == 1
    error = capsys.readouterr().err
    assert "00.jpg: image file is truncated" in error
    assert "2 of 16 pictures are corrupt, which --corrupt skip leaves out" in error
    assert _finetune(own, tmp_path / "out", weights, "--corrupt", "skip", "--epochs", "1") == 0
    error = capsys.readouterr().err
    assert f"left out {own / 'animals' / '00.jpg'}: image file is truncated" in error
    assert f"left out {own / 'things' / '10.jpg'}: is no picture" in error


@contextmanager
def _cut_at_epoch(number):
    """Interrupt the command in the block at the end of an epoch, counted over its trainings."""
    ends, done = Run._end_epoch, []

    def end(run, epoch):
        done.append(epoch)
        if len(done) == number:
            raise KeyboardInterrupt
        ends(run, epoch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Run, "_end_epoch", end)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_run_that_is_resumed_in_either_training_is_the_same(photographs, weights, tmp_path):
    def weights_of(out):
        state = checkpoint.load(out).classifier.module.state_dict()
        return torch.cat([value.float().flatten() for value in state.values()])

    assert _finetune(photographs, tmp_path / "whole", weights) == 0
    whole = weights_of(tmp_path / "whole")
    # Three epochs are judged, and three more learn from all.
    for number in (2, 5):
        out = tmp_path / f"cut-{number}"
        with _cut_at_epoch(number):
            _finetune(photographs, out, weights)
        assert _finetune(photographs, out, weights, "--resume") == 0
        assert torch.equal(weights_of(out), whole)
        metrics = checkpoint.load(out).metrics
        assert metrics["validation_accuracy"] > 0.4


def test_what_an_earlier_run_left_is_not_resumed(photographs, weights, tmp_path):
    out = tmp_path / "out"
    assert _finetune(photographs, out, weights) == 0
    other = ("--learning-rate", "0.01")
    with _cut_at_epoch(2):
        _finetune(photographs, out, weights, *other)
    # The second training of the earlier run is another one.
    assert _finetune(photographs, out, weights, *other, "--resume") == 0


def test_there_is_nothing_to_resume(photographs, weights, tmp_path, capsys):
    assert _finetune(photographs, tmp_path / "out", weights, "--resume") == 1
    assert "there is no run to resume" in capsys.readouterr().err


def test_a_start_that_was_better_is_solved_for_all_pictures(
    photographs, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(Run, "is_below_its_start", property(lambda run: run.history[-1].number > 0))
    out = tmp_path / "own"
    assert _finetune(photographs, out, weights) == 0
    judged, read = checkpoint.load(tmp_path / "own.run/judged"), checkpoint.load(out)
    assert (read.metrics["epochs"], read.metrics["steps"]) == (0, 0)
    assert read.metrics["validation_accuracy"] == judged.metrics["validation_accuracy"]
    assert read.record.data_digest == scan(photographs, "fail").digest


def test_data_that_changed_is_not_resumed(own, weights, tmp_path, capsys):
    assert _finetune(own, tmp_path / "out", weights, "--epochs", "1") == 0
    Image.open(own / "things" / "10.jpg").rotate(90).save(own / "things" / "10.jpg")
    assert _finetune(own, tmp_path / "out", weights, "--epochs", "1", "--resume") == 1
    assert re.search(r"data was 'sha256:\w+' and is 'sha256:\w+'", capsys.readouterr().err)


def test_folders_that_cannot_be_used(own, tmp_path):
    with pytest.raises(DataError, match="none: No such file"):
        scan(tmp_path / "none", "fail")
    with pytest.raises(DataError, match="deeper: has no folders; each class is a folder"):
        scan(own / "animals" / "deeper", "fail")
    with pytest.raises(DataError, match=r"has 2 classes, and 3 are wanted; .*alone: plants"):
        scan(own, "fail", ["animals", "plants", "things"])
    with pytest.raises(DataError, match="animals: has one folder, deeper; at least two classes"):
        scan(own / "animals", "fail")
    (own / "empty").mkdir()
    with pytest.raises(DataError, match="empty: has no pictures"):
        scan(own, "skip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--argument", "depht=3"], "depht"),
        (["--argument", "num_classes=5"], "num_classes is the number of the new labels, 2"),
        (["--holdout", "1"], "--holdout 1: Input should be less than 1"),
        (["--workers", "-1"], "--workers -1: Input should be greater than or equal to 0"),
        (["--frozen-epochs", "9"], "train: --frozen-epochs 9 is above --epochs 3"),
        (["--epochs", "x"], "--epochs x: "),
    ],
)
def test_wrong_usage_is_answered_with_2(photographs, tmp_path, capsys, arguments, message):
    assert _finetune(photographs, tmp_path / "out", "random:0", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
