"""The pictures of requests, as a classifier takes them."""

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import InputSpec, Manifest
from foveate_runtime.imaging.decode import ImageError, ImageLimits
from foveate_runtime.imaging.jpeg import count_scans
from foveate_runtime.imaging.transform import View, prepare, whole_view
from foveate_serve.classification import RawImage
from foveate_serve.engine.admission import Admission
from foveate_serve.engine.fair import FairThreads
from foveate_serve.errors import InvalidRequestError

_DECODE_AT_ONCE = ImageLimits(max_bytes=4 << 10, max_pixels=64 * 64)
"""Decoding no more than this into an input of no more pixels takes less than a change of thread."""

_DECODE_ALONE = ImageLimits(max_bytes=192 << 10, max_pixels=300_000)
"""Decoding a JPEG of no more than this takes a few milliseconds, and no other request waits."""

_FEW_SCANS = 4
"""A baseline JPEG has one scan or one for each colour, and so has its thumbnail."""


class Pictures:
    """Decodes the files of requests, on threads of which each model gets its share.

    What is tiny is decoded on the event loop, and so is a small JPEG of few scans that
    is alone in the server by `admission`.
    """

    def __init__(self, threads: FairThreads, admission: Admission, limits: ImageLimits) -> None:
        self._threads = threads
        self._admission = admission
        self._limits = limits

    async def prepared(
        self, image: bytes | RawImage, manifest: Manifest
    ) -> tuple[NDArray[np.uint8], View]:
        """Return a picture as uint8 [height, width, channels], and what of it is seen.

        Raises InvalidRequestError.
        """
        spec = manifest.input
        if isinstance(image, RawImage):
            return _pixels(image, spec)
        try:
            alone = self._admission.alone and image.startswith(b"\xff\xd8")
            small = self._at_once(image, spec, _DECODE_ALONE if alone else _DECODE_AT_ONCE)
            if small is not None:
                return small
            return await self._threads.run(
                manifest.name, lambda: prepare(image, spec, self._limits)
            )
        except ImageError as error:
            raise InvalidRequestError(
                error.reason,
                str(error),
                field="encoded",
                metadata={} if error.limit is None else {"limit": error.limit},
            ) from error

    def _at_once(
        self, image: bytes, spec: InputSpec, most: ImageLimits
    ) -> tuple[NDArray[np.uint8], View] | None:
        """Return a picture decoded, None where it or the input is larger than `most`.

        Also None for a JPEG of many scans. Raises ImageError.
        """
        if len(image) > most.max_bytes or spec.height * spec.width > most.max_pixels:
            return None
        if count_scans(image) > _FEW_SCANS:
            return None
        both = ImageLimits(
            max_bytes=self._limits.max_bytes,
            max_pixels=min(self._limits.max_pixels, most.max_pixels),
        )
        try:
            return prepare(image, spec, both)
        except ImageError as error:
            # A few bytes may hold millions of pixels, which the file's header tells.
            if error.reason == "IMAGE_TOO_LARGE":
                return None
            raise


def size_of(image: bytes | RawImage) -> int:
    """Return how many bytes a picture came as."""
    return len(image.data if isinstance(image, RawImage) else image)


def require_size(shape: tuple[int, ...], spec: InputSpec, field: str) -> None:
    """Raise InvalidRequestError unless (height, width, channels) is the classifier's."""
    names = ("height", "width", "channels")
    for name, have, want in zip(
        names, shape, (spec.height, spec.width, spec.channels), strict=True
    ):
        if have != want:
            raise InvalidRequestError(
                "SHAPE_MISMATCH",
                f"the picture's {name} is {have}; the model takes {want}",
                field=f"{field}.{name}",
                metadata={"limit": want},
            )


def _pixels(image: RawImage, spec: InputSpec) -> tuple[NDArray[np.uint8], View]:
    require_size((image.height, image.width, image.channels), spec, "raw")
    size = spec.height * spec.width * spec.channels
    if len(image.data) != size:
        raise InvalidRequestError(
            "SHAPE_MISMATCH",
            f"the picture has {len(image.data)} bytes; its shape makes {size}",
            field="raw.data",
            metadata={"limit": size},
        )
    pixels = np.frombuffer(image.data, dtype=np.uint8)
    return pixels.reshape(spec.height, spec.width, spec.channels), whole_view(spec)
