import copy
import resource
from functools import partial
from itertools import islice
from threading import Event

import pytest
import torch
from pydantic import ValidationError
from torchvision import models

from foveate_train import registry
from foveate_train.data.memory import InMemory, normalise, shifted
from foveate_train.errors import CheckpointError, ResumeError
from foveate_train.loop import Training, evaluate, schedule
from foveate_train.progress import StepProgress
from foveate_train.run import Run, read_state, write_state
from foveate_train.settings import Settings


def _training(name, digits, **settings):
    """A training of a network of the registry on some digits."""
    settings = Settings(**settings)
    classifier = registry.create(name, weights=f"random:{settings.seed}")
    return Training(classifier, InMemory(*digits, classifier.input, shift=settings.shift), settings)


def _losses(training, steps):
    """Do some steps; return their losses."""
    return [float(step.loss) for step in islice(training.steps(), steps)]


def _accuracy(training, digits):
    classifier = training.result
    return evaluate(classifier.module, InMemory(*digits, classifier.input))


def _same(one, other):
    state, repeated = one.result.module.state_dict(), other.result.module.state_dict()
    return all(torch.equal(state[key], repeated[key]) for key in state)


def test_a_small_network_learns_real_digits(digits, test_digits):
    training = _training("foveate:lenet5", digits, epochs=3, batch_size=64)
    before = _accuracy(training, test_digits)
    losses = _losses(training, training.total)
    assert before < 0.3
    assert _accuracy(training, test_digits) > 0.9
    assert sum(losses[-50:]) < sum(losses[:50]) / 2


def test_batch_normalisation_learns_within_sixty_steps(digits, test_digits):
    few = [part[:1920] for part in digits]
    training = _training("foveate:convnet4", few, epochs=2, batch_size=64)
    _losses(training, training.total)
    assert _accuracy(training, test_digits) > 0.9
    assert not training.result.module.training


def test_steps_count_what_they_do(digits):
    few = [part[:200] for part in digits]
    steps = list(_training("foveate:lenet5", few, epochs=2, batch_size=64).steps())
    assert [step.number for step in steps] == list(range(1, 9))
    assert {step.total for step in steps} == {8}
    assert [step.epoch for step in steps] == [1] * 4 + [2] * 4
    assert [step.ends_epoch for step in steps] == [False, False, False, True] * 2
    # Batches differ by one at most: a last batch of one would upset batch normalisation.
    assert [step.images for step in steps] == [50] * 8


def test_the_seed_decides_everything(digits):
    one, same, other = (_training("foveate:lenet5", digits, seed=seed) for seed in (1, 1, 2))
    first = _losses(one, 20)
    assert first == _losses(same, 20)
    assert first != _losses(other, 20)
    assert _same(one, same)


RECIPES = {
    "sgd": {"optimizer": "sgd", "schedule": "constant", "learning_rate": 0.05},
    "cosine, ema": {"schedule": "cosine", "ema": 0.99, "clip_norm": 1.0},
    "mixing": {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1, "accumulate": 2},
    "float32": {"precision": "float32", "weight_decay": 0.0},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_goes_on_from_its_state_bit_for_bit(digits, recipe):
    few = [part[:512] for part in digits]
    whole, first, second = (
        _training("foveate:lenet5", few, epochs=3, batch_size=64, **RECIPES[recipe])
        for _ in range(3)
    )
    losses = _losses(whole, 24)
    _losses(first, 13)
    second.restore(copy.deepcopy(first.state()))
    # In the middle of the second epoch of eight steps.
    assert _losses(second, 24) == losses[13:]
    assert _same(whole, second)


def test_parts_of_a_batch_make_the_same_step(digits):
    whole, parts = (
        _training("foveate:lenet5", digits, accumulate=count, precision="float32")
        for count in (1, 4)
    )
    assert _losses(parts, 5) == pytest.approx(_losses(whole, 5), rel=1e-5)


def test_clipping_bounds_a_step(digits):
    free, clipped = (
        _training(
            *("foveate:lenet5", digits),
            optimizer="sgd",
            momentum=0,
            schedule="constant",
            weight_decay=0,
            clip_norm=norm,
            learning_rate=1.0,
            precision="float32",
        )
        for norm in (None, 0.01)
    )

    def moved(training):
        before = copy.deepcopy(training.result.module)
        _losses(training, 1)
        pairs = zip(before.parameters(), training.result.module.parameters(), strict=True)
        return torch.cat([(a - b).flatten() for a, b in pairs]).norm().item()

    assert moved(free) > 0.02
    assert moved(clipped) == pytest.approx(0.01, rel=1e-3)


def test_biases_and_normalisations_do_not_decay(digits):
    few = [part[:64] for part in digits]
    plain = {"optimizer": "sgd", "momentum": 0, "schedule": "constant", "precision": "float32"}

    def after_a_step(decay):
        training = _training(
            "foveate:convnet4", few, batch_size=64, learning_rate=0.1, weight_decay=decay, **plain
        )
        _losses(training, 1)
        return dict(training.result.module.named_parameters())

    free, decayed = after_a_step(0), after_a_step(0.5)
    differing = {key for key in free if not torch.equal(free[key], decayed[key])}
    assert differing == {key for key, value in free.items() if value.ndim > 1}


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "constant"])
def test_one_step_is_a_whole_schedule(name):
    share, _ = schedule(Settings(schedule=name), 0, 1)
    assert share == 1


def test_one_cycle_is_that_of_torch():
    settings = Settings(schedule="one_cycle", warm_up=0.25)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=81, pct_start=21 / 81)
    for step in range(80):
        (group,) = optimizer.param_groups
        expected = pytest.approx((group["lr"], group["momentum"]), abs=1e-3)
        assert schedule(settings, step, 80) == expected
        optimizer.step()
        theirs.step()


def test_inception_teaches_its_auxiliary_head_at_four_tenths():
    classifier = registry.create("torchvision:inception_v3", weights="random:0")
    output = models.InceptionOutputs(torch.tensor(2.0), torch.tensor(10.0))
    assert classifier.loss(output, lambda logits: logits + 1) == pytest.approx(3 + 0.4 * 11)
    assert registry.create("foveate:lenet5").loss(torch.tensor(2.0), torch.neg) == -2


def test_the_average_is_what_is_kept(digits):
    plain = _training("foveate:lenet5", digits)
    averaged = _training("foveate:lenet5", digits, ema=0.9)
    assert _losses(plain, 10) == _losses(averaged, 10)
    assert not _same(plain, averaged)


def test_smoothing_raises_the_least_loss(digits):
    # With half of the target spread over ten classes no answer has a loss below its entropy.
    training = _training("foveate:lenet5", digits, epochs=1, batch_size=64, label_smoothing=0.5)
    spread, right = 0.05, 0.55
    entropy = -torch.tensor([right, *[spread] * 9]).mul(torch.tensor([right, *[spread] * 9]).log())
    losses = _losses(training, training.total)
    assert entropy.sum() < min(losses) < losses[0]


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
@pytest.mark.parametrize("count", [50, 150, 320])
def test_a_schedule_rises_and_falls_however_short(digits, schedule, count):
    few = [part[:count] for part in digits]
    training = _training("foveate:lenet5", few, batch_size=64, schedule=schedule)
    rates = [training._optimizer.param_groups[0]["lr"] for _ in training.steps()]
    assert len(rates) == -(-count // 64)
    assert max(rates) <= 5e-3
    assert rates[-1] == min(rates[len(rates) // 2 :])


def test_half_precision_follows_full_precision(digits):
    full, half = (
        _training("foveate:lenet5", digits, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert _losses(half, 20) == pytest.approx(_losses(full, 20), rel=0.05)


def _run(digits, path, **settings):
    training = _training("foveate:lenet5", digits, **settings)
    held = InMemory(*(part[:100] for part in digits), registry.create("foveate:lenet5").input)
    return Run(training, held, path)


def _epochs(run, stop=None):
    quiet = StepProgress(done=0, total=1)
    return list(run.epochs(quiet, stop or Event()))


def test_training_ends_when_the_accuracy_no_longer_rises(digits, tmp_path):
    few = [part[:128] for part in digits]
    run = _run(few, tmp_path / "a", epochs=50, batch_size=64, patience=3)
    epochs = _epochs(run)
    best = max(epochs, key=lambda epoch: epoch.accuracy)
    assert len(epochs) == best.number + 3 < 50
    # And a run that ended so is not begun again.
    again = _run(few, tmp_path / "a", epochs=50, batch_size=64, patience=3)
    assert again.history == epochs
    assert _epochs(again) == []


def test_a_wish_to_stop_keeps_the_step(digits, tmp_path):
    few = [part[:256] for part in digits]
    stop = Event()
    stop.set()
    assert _epochs(_run(few, tmp_path / "a", epochs=2, batch_size=64), stop) == []
    rest = _run(few, tmp_path / "a", epochs=2, batch_size=64)
    assert rest.training.number == 1
    whole = _run(few, tmp_path / "b", epochs=2, batch_size=64)
    assert [e._replace(seconds=0) for e in _epochs(rest)] == [
        e._replace(seconds=0) for e in _epochs(whole)
    ]


def test_a_state_of_another_run_is_refused_with_what_differs(tmp_path):
    write_state(tmp_path / "a", {"data": "sha256:1", "seed": 0}, {"number": 3})
    with pytest.raises(ResumeError, match="data was 'sha256:1' and is 'sha256:2'"):
        read_state(tmp_path / "a", {"data": "sha256:2", "seed": 0})
    (tmp_path / "a").write_bytes(b"no state")
    with pytest.raises(ResumeError, match="is damaged"):
        read_state(tmp_path / "a", {})


def test_a_full_disk_leaves_the_former_state_whole(tmp_path):
    path = tmp_path / "state.pt"
    write_state(path, {}, {"values": torch.arange(10)})
    # A limit on the size of files stands for a full disk: writing fails half way.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"state\.pt: cannot be written"):
            write_state(path, {}, {"values": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(read_state(path, {})["values"], torch.arange(10))
    assert list(tmp_path.iterdir()) == [path]


def test_a_compiled_network_learns_the_same(digits, monkeypatch):
    # What is captured runs as it is: to generate and build code takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = (
        _training("foveate:lenet5", digits, compile=wanted, precision="float32")
        for wanted in (False, True)
    )
    assert _losses(compiled, 5) == _losses(plain, 5)


def test_evaluation_counts_what_is_right(test_digits):
    classifier = registry.create("foveate:lenet5")
    images, labels = (part[:101] for part in test_digits)

    def share(truth):
        return evaluate(classifier.module, InMemory(images, truth, classifier.input))

    with torch.inference_mode():
        predicted = classifier.module(normalise(images, classifier.input)).argmax(1)
    assert share(predicted) == 1
    assert share((predicted + 1) % 10) == 0
    assert share(labels) == pytest.approx((predicted == labels).float().mean().item())


def test_normalisation_is_that_of_the_input_specification(digits):
    spec = registry.create("foveate:lenet5").input
    images = digits[0][:4]
    expected = (images.double() / 255 - 0.1307) / 0.3081
    assert torch.allclose(normalise(images, spec).double(), expected, atol=1e-6)


def test_a_shift_moves_pictures_and_loses_nothing_inside():
    picture = torch.zeros(64, 2, 5, 5, dtype=torch.uint8)
    picture[:, 0, 2, 2], picture[:, 1, 2, 2] = 7, 9
    generator = torch.Generator().manual_seed(0)
    moved = shifted(picture, 1, generator)
    assert moved.shape == picture.shape
    # Each picture is its middle pixel, somewhere within one pixel of the middle,
    # at the same place in both channels.
    places = {tuple(image.nonzero().tolist()[0]) for image in moved[:, 0]}
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}
    assert torch.equal(moved[:, 0] // 7, moved[:, 1] // 9)
    assert (moved.sum((1, 2, 3)) == 16).all()


def test_no_shift_is_no_change(digits):
    images = digits[0][:4]
    assert torch.equal(shifted(images, 0, torch.Generator()), images)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("warm_up", 1.0),
        ("shift", -1),
        ("seed", -1),
        ("momentum", 1.0),
        ("accumulate", 65),
        ("frozen_epochs", 2),
        ("schedule", "step"),
        ("nesterov", True),
    ],
)
def test_a_setting_has_limits(name, value):
    with pytest.raises(ValidationError, match=name.replace("_", ".")):
        Settings(**{name: value})
