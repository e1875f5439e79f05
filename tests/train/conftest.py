import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import skimage
import torch
from PIL import Image

from foveate_train import checkpoint, registry
from foveate_train.data import mnist

PICTURES = {
    "animals": (skimage.data.cat, skimage.data.chelsea),
    "things": (skimage.data.coffee, skimage.data.rocket),
}


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


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight pictures: two photographs each, cut into quarters."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, sources in PICTURES.items():
        (folder / name / "deeper").mkdir(parents=True)
        for number, source in enumerate(sources):
            pixels = source()
            height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
            for quarter in range(4):
                row, column = divmod(quarter, 2)
                part = pixels[row * height :, column * width :][:height, :width]
                below = "deeper" if quarter == 3 else "."
                Image.fromarray(part).resize((96, 80)).save(
                    folder / name / below / f"{number}{quarter}.jpg"
                )
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small network of a thousand classes, as a file."""
    folder = tmp_path_factory.mktemp("weights") / "backbone"
    classifier = registry.create("timm:mobilenetv3_small_050.lamb_in1k", weights="random:5")
    checkpoint.save(folder, classifier, metrics={}, data_digest="none", seed=5)
    return folder / "model.safetensors"


@pytest.fixture
def own(photographs: Path, tmp_path: Path) -> Path:
    """A copy of the photographs, to spoil."""
    return shutil.copytree(photographs, tmp_path / "own")
