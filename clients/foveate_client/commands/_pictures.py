"""Writes the explanations of a classification as pictures, each with its raw values."""

import re
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from PIL import Image

from foveate_client import _drawing
from foveate_client._images import ImageInput, open_upright
from foveate_client._results import Classification, FeatureMap, Heatmap


@dataclass(frozen=True, kw_only=True)
class Written:
    """The pictures written for one classification, in the order of its explanations."""

    cams: tuple[Path, ...]
    feature_maps: tuple[Path, ...]


def drawn(image: ImageInput, result: Classification) -> list[Image.Image]:
    """Return a picture of each explanation of `result`, maps first, for showing at once.

    A map is the original and the overlay side by side, a feature map its contact
    sheet. Raises ImageError where the picture cannot be drawn upon.
    """
    original = open_upright(image) if result.cams else None
    return [
        *(_pair(original, cam.overlay(original)) for cam in result.cams if original),
        *(features.contact_sheet() for features in result.feature_maps),
    ]


def _pair(left: Image.Image, right: Image.Image) -> Image.Image:
    gap = max(1, left.width // 50)
    pair = Image.new("RGB", (2 * left.width + gap, left.height), _drawing.PAPER)
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + gap, 0))
    return pair


class PictureWriter:
    """Writes into `folder`, which it makes for the first picture.

    For the class activation map of class 281 of cat.jpg: `cat.cam.281.png`, the
    original and the overlay side by side; `cat.cam.281.heatmap.png`, the map
    alone; `cat.cam.281.npy`, its raw values. For a feature map:
    `cat.features.LAYER.png`, a contact sheet, and `.npy`. Pictures of one name
    from different folders are told apart by a number.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stems: set[str] = set()

    def write(self, name: str, image: ImageInput, result: Classification) -> Written:
        """Write the explanations of `result`; `name` is the picture's name and `image` itself.

        Raises ImageError where the picture cannot be drawn upon and OSError
        where a file cannot be written.
        """
        stem = self._stem(name)
        self._folder.mkdir(parents=True, exist_ok=True)
        original = open_upright(image)
        return Written(
            cams=tuple(self._write_cam(stem, original, result, cam) for cam in result.cams),
            feature_maps=tuple(self._write_features(stem, x) for x in result.feature_maps),
        )

    def _stem(self, name: str) -> str:
        stem = "stdin" if name == "-" else Path(name).stem
        candidates = chain([stem], (f"{stem}-{number}" for number in count(2)))
        free = next(candidate for candidate in candidates if candidate not in self._stems)
        self._stems.add(free)
        return free

    def _write_cam(
        self, stem: str, original: Image.Image, result: Classification, cam: Heatmap
    ) -> Path:
        base = f"{stem}.{_plain(cam.method)}.{cam.class_id}"
        picture = self._folder / f"{base}.png"
        _drawing.beside(
            original,
            cam.overlay(original),
            cam.view.box,
            title=_title(result, cam),
            subtitle=f"{_evidence(cam)}   ·   {cam.method} of {cam.layer}   ·   "
            f"{result.model}, version {result.version}",
            maximum=cam.maximum,
        ).save(picture)
        cam.save(self._folder / f"{base}.heatmap.png")
        cam.save(self._folder / f"{base}.npy")
        return picture

    def _write_features(self, stem: str, features: FeatureMap) -> Path:
        base = f"{stem}.features.{_plain(features.layer)}"
        picture = self._folder / f"{base}.png"
        features.save(picture)
        features.save(self._folder / f"{base}.npy")
        return picture


def _title(result: Classification, cam: Heatmap) -> str:
    scores = {prediction.class_id: prediction.score for prediction in result.predictions}
    score = scores.get(cam.class_id)
    return cam.label if score is None else f"{cam.label}   {score:.1%}"


def _evidence(cam: Heatmap) -> str:
    if not cam.has_evidence:
        return "no positive evidence"
    return f"values {cam.minimum:.3g} to {cam.maximum:.3g}"


def _plain(name: str) -> str:
    """Return `name` without what a file's name cannot hold everywhere."""
    return re.sub(r"[^\w.-]", "_", name)
