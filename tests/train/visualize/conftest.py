"""A trained network to draw."""

import pytest
import torch

from foveate_train import checkpoint, registry
from foveate_train.data.memory import InMemory
from foveate_train.loop import Training
from foveate_train.settings import Settings


@pytest.fixture(scope="session")
def trained(tmp_path_factory, digits):
    """A checkpoint of a network that has seen 6,000 digits."""
    torch.manual_seed(0)
    classifier = registry.create("foveate:convnet4", weights="random:0")
    data = InMemory(*digits, classifier.input)
    training = Training(classifier, data, Settings(batch_size=64), device=torch.device("cpu"))
    assert len(list(training.steps())) == training.total
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    checkpoint.save(folder, training.result, metrics={}, data_digest="none", seed=0)
    return folder
