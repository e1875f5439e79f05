"""LeNet-5, trained for the occasion: a classifier whose run costs next to nothing."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

from foveate_train.data import mnist

NAME = "lenet5"
_EPOCHS = "1"


def export_lenet(folder: Path) -> Path:
    """Train LeNet-5 on MNIST and export it; return the bundle, in a repository of its own."""
    foveate = Path(sys.executable).with_name("foveate")
    checkpoint, repository = folder / "checkpoint", folder / "repository"
    train = ["train", "mnist", "--model", "foveate:lenet5", "--epochs", _EPOCHS, "--out"]
    subprocess.run([foveate, *train, checkpoint], check=True, stdout=subprocess.DEVNULL)
    export = ["export", checkpoint, "--repository", repository, "--name", NAME]
    subprocess.run([foveate, *export], check=True, stdout=subprocess.DEVNULL)
    return repository / NAME / "1"


def write_digits(folder: Path, count: int) -> list[bytes]:
    """Write the first digits of MNIST's test set as PNG files, and return these."""
    images, _ = mnist.load("test")
    files = []
    for number, image in enumerate(images[:count]):
        path = folder / f"{number:05}.png"
        Image.fromarray(image).save(path)
        files.append(path.read_bytes())
    return files
