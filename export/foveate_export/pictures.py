"""The pictures that an exported graph is compared with torch on.

Real ones, because the activations of noise are nothing like those of pictures
and rarely reach what clips, saturates or divides.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate_export.errors import ExportError
from foveate_serve.bundle import manifest
from foveate_serve.imaging.decode import ImageError, ImageLimits
from foveate_serve.imaging.transform import prepare
from foveate_train.classifier import Classifier, InputSpec
from foveate_train.data import mnist
from foveate_train.errors import DataError

MOST = 32
"""How many pictures are enough: each is compared in thousands of values."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
"""The names, in lower case, of the formats that the server decodes."""

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
"""The photographs in colour that scikit-image holds, rather than downloads."""

DIGITS = tuple("0123456789")
SEED = 0


@dataclass(frozen=True)
class Pictures:
    """Pictures of a classifier's size, and where they come from.

    `images` is uint8 [N, H, W, C].
    """

    images: NDArray[np.uint8]
    description: str

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.images)

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        """Yield them in order, `size` at a time."""
        for start in range(0, len(self.images), size):
            yield self.images[start : start + size]


def serving_spec(spec: InputSpec) -> manifest.InputSpec:
    """Return the input specification as the manifest holds it and the server reads it."""
    return manifest.InputSpec(
        height=spec.height,
        width=spec.width,
        channels=spec.channels,
        resize=spec.resize,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
    )


def from_folder(folder: Path, spec: InputSpec) -> Pictures:
    """Return up to `MOST` pictures of a folder and those in it, evenly spaced by name.

    Raises:
        ExportError: there is none, or one cannot be decoded.
    """
    files = image_files(folder)
    if not files:
        raise ExportError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    chosen = [files[i * len(files) // MOST] for i in range(MOST)] if len(files) > MOST else files
    return _prepared(chosen, spec, f"pictures of {folder.name}")


def for_classifier(classifier: Classifier) -> Pictures:
    """Return real pictures of the classifier's kind where there are any, or else noise.

    MNIST's test digits for a classifier of digits, the photographs of
    scikit-image where it is installed, or else noise with a fixed seed.
    """
    spec = classifier.input
    if spec.channels == 1 and classifier.labels == DIGITS:
        try:
            digits, _ = mnist.load("test")
        except DataError:
            return _noise(spec)
        serving = serving_spec(spec)
        images = [decoded(png(digit), serving, "an MNIST digit") for digit in digits[:MOST]]
        return Pictures(np.stack(images), "MNIST test digits")
    found = find_spec("skimage") if spec.channels in (1, 3) else None
    if found is None or found.origin is None:
        return _noise(spec)
    folder = Path(found.origin).parent / "data"
    files = [folder / name for name in PHOTOGRAPHS if (folder / name).is_file()]
    return _prepared(files, spec, "scikit-image photographs") if files else _noise(spec)


def image_files(folder: Path) -> list[Path]:
    """Return the picture files in `folder` and its subfolders, sorted by path."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode uint8 [H, W] or [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decoded(data: bytes, spec: manifest.InputSpec, name: str) -> NDArray[np.uint8]:
    """Turn an encoded picture into uint8 [H, W, C], as the server does.

    Raises:
        ExportError: the picture, called `name`, cannot be decoded.
    """
    try:
        image, _ = prepare(data, spec, ImageLimits())
    except ImageError as error:
        raise ExportError(f"{name}: {error}") from error
    return image


def _prepared(files: list[Path], spec: InputSpec, description: str) -> Pictures:
    serving = serving_spec(spec)
    images = [decoded(path.read_bytes(), serving, str(path)) for path in files]
    return Pictures(np.stack(images), description)


def _noise(spec: InputSpec) -> Pictures:
    shape = (MOST, spec.height, spec.width, spec.channels)
    noise = np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8)
    return Pictures(noise, f"noise with the seed {SEED}")
