import pytest
import torch
from pydantic import ValidationError

from foveate_train import registry
from foveate_train.training import Settings, evaluate, normalise, shifted, train


def _losses(digits, steps, **settings):
    """Train lenet5 for some steps; return the losses and the classifier."""
    classifier = registry.create("foveate:lenet5", weights=f"random:{settings['seed']}")
    losses = []
    for step in train(classifier, *digits, Settings(**settings)):
        losses.append(float(step.loss))
        if step.number == steps:
            break
    return losses, classifier


def test_a_small_network_learns_real_digits(digits, test_digits):
    classifier = registry.create("foveate:lenet5", weights="random:0")
    before = evaluate(classifier, *test_digits)
    steps = list(train(classifier, *digits, Settings(epochs=3, batch_size=64, seed=0)))
    assert before < 0.3
    assert evaluate(classifier, *test_digits) > 0.9
    first, last = (sum(float(s.loss) for s in part) / 50 for part in (steps[:50], steps[-50:]))
    assert last < first / 2


def test_batch_normalisation_learns_within_sixty_steps(digits, test_digits):
    classifier = registry.create("foveate:convnet4", weights="random:0")
    for _ in train(
        classifier, *(part[:1920] for part in digits), Settings(epochs=2, batch_size=64)
    ):
        pass
    assert evaluate(classifier, *test_digits) > 0.9
    assert not classifier.module.training


def test_steps_count_what_they_do(digits):
    images, labels = (part[:200] for part in digits)
    classifier = registry.create("foveate:lenet5")
    steps = list(train(classifier, images, labels, Settings(epochs=2, batch_size=64)))
    assert [step.number for step in steps] == list(range(1, 9))
    assert {step.total for step in steps} == {8}
    assert [step.epoch for step in steps] == [1] * 4 + [2] * 4
    assert [step.ends_epoch for step in steps] == [False, False, False, True] * 2
    # Batches differ by one at most: a last batch of one would upset batch normalisation.
    assert [step.images for step in steps] == [50] * 8


def test_the_seed_decides_everything(digits):
    first, one = _losses(digits, 20, seed=1)
    again, same = _losses(digits, 20, seed=1)
    other, _ = _losses(digits, 20, seed=2)
    assert first == again
    assert first != other
    state, repeated = one.module.state_dict(), same.module.state_dict()
    assert all(torch.equal(state[key], repeated[key]) for key in state)


def test_evaluation_counts_what_is_right(test_digits):
    classifier = registry.create("foveate:lenet5")
    images, labels = (part[:101] for part in test_digits)
    with torch.inference_mode():
        predicted = classifier.module(normalise(images, classifier.input)).argmax(1)
    assert evaluate(classifier, images, predicted, batch_size=10) == 1
    assert evaluate(classifier, images, (predicted + 1) % 10, batch_size=10) == 0
    share = (predicted == labels).float().mean().item()
    assert evaluate(classifier, images, labels, batch_size=7) == pytest.approx(share)


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
        ("momentum", 0.9),
    ],
)
def test_a_setting_has_limits(name, value):
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})
