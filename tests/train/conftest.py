from collections.abc import Iterator

import pytest
import torch

from foveate_train.data import mnist


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The first 6,000 training pictures of MNIST, uint8 [6000, 1, 28, 28], and their labels."""
    images, labels = mnist.load("train")
    return torch.from_numpy(images[:6000])[:, None], torch.from_numpy(labels[:6000])


@pytest.fixture(scope="session")
def test_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The first 2,000 test pictures of MNIST and their labels."""
    images, labels = mnist.load("test")
    return torch.from_numpy(images[:2000])[:, None], torch.from_numpy(labels[:2000])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks are small: a second thread gains little and waits for busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
