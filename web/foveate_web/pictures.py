"""The pictures that the page was given: checked, and kept in memory within bounds."""

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from PIL import Image, UnidentifiedImageError

from foveate_client import ImageError

MAX_BYTES = 16 * 2**20
"""The largest file that is taken: a server's messages have at most 24 MiB."""

MAX_PIXELS = 50_000_000
"""The most pixels of a picture, as a server has them."""

MAX_KEPT = 64
MAX_KEPT_BYTES = 128 * 2**20

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")

_EXAMPLES = {
    "coffee": "coffee.jpg",
    "cat": "cat.jpg",
    "seven": "seven.png",
    "nine": "nine.png",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An encoded picture.

    `name` is that of an example, or made of the bytes; `width` and `height` are in
    pixels, as stored; `grey` tells that it has no colours.
    """

    name: str
    data: bytes
    width: int
    height: int
    grey: bool


class Pictures:
    """Keeps the pictures that were used last, and the examples for good.

    At most `most` pictures and `most_bytes` bytes are kept beside the examples. It may be
    used from several threads at once.
    """

    def __init__(self, *, most: int = MAX_KEPT, most_bytes: int = MAX_KEPT_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.examples = {picture.name: picture for picture in _examples()}

    def add(self, data: bytes) -> Picture:
        """Keep a picture and return it. Raises ImageError where it is none, or too large."""
        picture = _checked(hashlib.sha256(data).hexdigest()[:32], data)
        with self._lock:
            if picture.name not in self._kept:
                self._kept[picture.name] = picture
                self._bytes += len(data)
            self._kept.move_to_end(picture.name)
            while len(self._kept) > 1 and (
                len(self._kept) > self._most or self._bytes > self._most_bytes
            ):
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest.data)
        return picture

    def get(self, name: str) -> Picture:
        """Return the picture of this name. Raises ImageError where it is not kept."""
        if name in self.examples:
            return self.examples[name]
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        raise ImageError("this picture is no longer kept here; choose it again")


def _examples() -> Iterable[Picture]:
    folder = resources.files("foveate_web") / "examples"
    for name, file in _EXAMPLES.items():
        yield _checked(name, (folder / file).read_bytes())


def _checked(name: str, data: bytes) -> Picture:
    if len(data) > MAX_BYTES:
        raise ImageError(f"the picture has {len(data)} bytes; the limit is {MAX_BYTES} bytes")
    try:
        # This reads the head alone.
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            width, height = opened.size
            grey = opened.mode in {"1", "L", "LA"}
    except (UnidentifiedImageError, Image.DecompressionBombError, *_MALFORMED) as error:
        raise ImageError("this is no PNG, JPEG, WebP, BMP or GIF picture") from error
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"the picture has {width} x {height} pixels; the limit is {MAX_PIXELS} pixels"
        )
    return Picture(name=name, data=data, width=width, height=height, grey=grey)


_MALFORMED = (OSError, SyntaxError, ValueError, TypeError, LookupError)
"""What Pillow raises for pictures that are damaged."""
