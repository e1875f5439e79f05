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
from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.evaluation.labelled import SUFFIXES, image_files
from foveate_runtime.imaging.decode import MODES, ImageError, ImageLimits
from foveate_runtime.imaging.transform import prepare

MOST = 32
"""How many pictures are enough: each is compared in thousands of values."""

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


def from_folder(
    folder: Path,
    spec: InputSpec,
    *,
    most: int = MOST,
    corrupt: list[str] | None = None,
) -> Pictures:
    """Return up to `most` pictures of a folder and those in it, evenly spaced by name.

    Args:
        folder: holds them.
        spec: the input that they become.
        most: how many to take.
        corrupt: gets what is wrong with each picture that cannot be decoded, and
            that is left out; None where there must be none.

    Raises:
        ExportError: there is none, or one cannot be decoded.
    """
    files = image_files(folder)
    if not files:
        raise ExportError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    chosen = [files[i * len(files) // most] for i in range(most)] if len(files) > most else files
    return _prepared(chosen, spec, f"pictures of {folder.name}", corrupt)


def shipped(spec: InputSpec) -> Pictures:
    """Return the photographs of scikit-image where it is installed, or else noise with a seed."""
    found = find_spec("skimage") if spec.channels in MODES else None
    if found is None or found.origin is None:
        return noise(spec)
    folder = Path(found.origin).parent / "data"
    files = [folder / name for name in PHOTOGRAPHS if (folder / name).is_file()]
    return _prepared(files, spec, "scikit-image photographs") if files else noise(spec)


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode uint8 [H, W] or [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decoded(data: bytes, spec: InputSpec, name: str) -> NDArray[np.uint8]:
    """Turn an encoded picture into uint8 [H, W, C], as the server does.

    Raises:
        ExportError: the picture, called `name`, cannot be decoded.
    """
    try:
        image, _ = prepare(data, spec, ImageLimits())
    except ImageError as error:
        raise ExportError(f"{name}: {error}") from error
    return image


def _prepared(
    files: list[Path], spec: InputSpec, description: str, corrupt: list[str] | None = None
) -> Pictures:
    images = []
    for path in files:
        try:
            images.append(decoded(_read(path), spec, str(path)))
        except ExportError as error:
            if corrupt is None:
                raise
            corrupt.append(str(error))
    if not images:
        raise ExportError(f"{description}: none can be decoded")
    return Pictures(np.stack(images), description)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}") from error


def noise(spec: InputSpec) -> Pictures:
    """Return noise with a fixed seed, for inputs that are no pictures."""
    shape = (MOST, spec.height, spec.width, spec.channels)
    values = np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8)
    return Pictures(values, f"noise with the seed {SEED}")
