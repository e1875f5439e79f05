"""Which stages of a network stay as they are, and what its new head begins with."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from foveate_train.data.batches import Batch
from foveate_train.errors import WeightsError
from foveate_train.transfer import begin


class Pictures:
    """Pictures of noise; the class is how much of each channel there is."""

    digest = "none"

    def __init__(self, classes, count=12):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(classes).repeat_interleave(count)
        level = torch.eye(8)[self.labels][:, :, None, None]
        noise = torch.rand(classes * count, 8, 6, 6, generator=generator)
        self.images = level + 2 * noise

    def __len__(self):
        return len(self.labels)

    def epoch(self, seed, epoch, batch_size, *, start=0):
        raise NotImplementedError

    def all(self):
        yield Batch(self.images, self.labels, len(self))


class Scaled(nn.Module):
    """Multiplies each channel by a number of its own, and keeps the places."""

    def __init__(self, *factors):
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors).view(-1, 1, 1))

    def forward(self, images):
        return images * self.factors


class Skipping(nn.Module):
    """A network whose last stage takes what its first made."""

    def __init__(self, classes):
        super().__init__()
        self.one, self.two = Scaled(*WHOLE), Scaled(*[2.0] * 8)
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        one = self.one(images)
        return self.head((self.two(one) + one).mean((2, 3)))


WHOLE, SOME = [1.0] * 8, [1.0, *[0.0] * 7]


def _network(classes, *stages):
    """Some stages, and a head on what they made."""
    return nn.Sequential(
        *(Scaled(*factors) for factors in stages),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)),
    ).eval()


def _head(network):
    return {f"{len(network) - 1}.weight", f"{len(network) - 1}.bias"}


def test_what_comes_after_the_best_stage_learns():
    # The last stage leaves nothing of seven channels.
    module = _network(4, WHOLE, WHOLE, WHOLE, SOME)
    start = begin(module, _head(module), Pictures(4))
    assert start.frozen == ("0", "1", "2")
    assert not start.suffices


def test_the_head_alone_suffices_where_it_is_given_the_best():
    module = _network(4, WHOLE, WHOLE, WHOLE)
    start = begin(module, _head(module), Pictures(4))
    assert start.solved
    assert start.suffices


def test_no_stage_that_something_later_needs_is_the_last_that_rests():
    module = Skipping(4).eval()
    start = begin(module, {"head.weight", "head.bias"}, Pictures(4))
    assert start.frozen == ()
    assert start.solved


@pytest.mark.parametrize("classes", [2, 4])
def test_the_head_begins_as_the_solution_of_a_logistic_regression(classes):
    module, pictures = _network(classes, WHOLE, WHOLE, WHOLE), Pictures(classes)
    begin(module, _head(module), pictures)
    with torch.inference_mode():
        found = module(pictures.images).softmax(1).numpy()
    given = pictures.images.mean((2, 3)).numpy()
    standard = (given - given.mean(0)) / given.std()
    labels = pictures.labels.numpy()
    expected = [
        LogisticRegression(C=strength, max_iter=2000).fit(standard, labels).predict_proba(standard)
        for strength in (1e-3, 1e-2, 1e-1, 1.0)
    ]
    assert min(np.abs(found - each).max() for each in expected) < 1e-4


def test_a_class_of_one_picture_has_a_solution_and_counts_like_the_others():
    pictures = Pictures(3)
    pictures.labels, pictures.images = pictures.labels[:25], pictures.images[:25]
    module = _network(3, WHOLE, WHOLE, WHOLE)
    begin(module, _head(module), pictures)
    with torch.inference_mode():
        logits = module(pictures.images)
    assert logits.isfinite().all()
    assert logits[24].argmax() == 2


def test_weights_that_are_not_finite_are_named():
    module = _network(2, WHOLE, [float("nan"), *WHOLE[1:]], WHOLE)
    with pytest.raises(WeightsError, match=r"^1 makes numbers of the pictures that are not finite"):
        begin(module, _head(module), Pictures(2))
