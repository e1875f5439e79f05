"""Decodes and resizes the pictures of requests to the classifier's input."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import InputSpec, Manifest
from foveate_runtime.imaging.decode import ImageError, ImageLimits
from foveate_runtime.imaging.transform import View, prepare, whole_view
from foveate_serve.classification import RawImage
from foveate_serve.engine.admission import Admission
from foveate_serve.engine.fair import FairThreads
from foveate_serve.errors import InvalidRequestError

_FEW_SCANS = 4
"""A baseline JPEG has one scan or one for each colour, and so has its thumbnail."""

_INLINE = ImageLimits(max_bytes=4 << 10, max_pixels=64 * 64, max_scans=_FEW_SCANS)
"""Decoding up to this, into an input of up to as many pixels, takes less than a thread handover."""

_INLINE_ALONE = ImageLimits(max_bytes=192 << 10, max_pixels=300_000, max_scans=_FEW_SCANS)
"""A JPEG up to this blocks the event loop for a few milliseconds: harmless with one request."""


class Pictures:
    """Decodes the files of requests, on threads that the models share fairly.

    A small picture is decoded on the event loop, and so is a larger JPEG of few scans
    that is the only one in flight by `admission`.
    """

    def __init__(self, threads: FairThreads, admission: Admission, limits: ImageLimits) -> None:
        self._threads = threads
        self._admission = admission
        self._limits = limits
        self._inline, self._inline_alone = (
            ImageLimits(
                max_bytes=min(limits.max_bytes, most.max_bytes),
                max_pixels=min(limits.max_pixels, most.max_pixels),
                max_scans=most.max_scans,
            )
            for most in (_INLINE, _INLINE_ALONE)
        )

    async def prepare(
        self, images: Sequence[bytes | RawImage] | NDArray[np.uint8], manifest: Manifest
    ) -> tuple[NDArray[np.uint8], View]:
        """Return pixels as they are, or one picture as uint8 [1, height, width, channels].

        Also return the part of the picture that is seen. Raises InvalidRequestError.
        """
        spec = manifest.input
        if isinstance(images, np.ndarray):
            return images, whole_view(spec)
        (image,) = images
        if isinstance(image, RawImage):
            return _pixels(image, spec), whole_view(spec)
        try:
            prepared = self._prepare_inline(image, spec)
            if prepared is None:
                prepared = await self._threads.run(
                    manifest.name, lambda: prepare(image, spec, self._limits)
                )
        except ImageError as error:
            raise InvalidRequestError(
                error.reason,
                str(error),
                field="encoded",
                metadata={} if error.limit is None else {"limit": error.limit},
            ) from error
        pixels, view = prepared
        return pixels[np.newaxis], view

    def _prepare_inline(
        self, image: bytes, spec: InputSpec
    ) -> tuple[NDArray[np.uint8], View] | None:
        """Decode a picture on this thread; return None where it or the input is too large.

        Also None for a JPEG of many scans. Raises ImageError.
        """
        alone = self._admission.alone and image.startswith(b"\xff\xd8")
        limits = self._inline_alone if alone else self._inline
        if len(image) > limits.max_bytes or spec.height * spec.width > limits.max_pixels:
            return None
        try:
            return prepare(image, spec, limits)
        except ImageError as error:
            # A small file may hold millions of pixels, or many scans.
            if error.limit is not None:
                return None
            raise


def size_of(image: bytes | RawImage) -> int:
    """Return the bytes of a picture as it was received."""
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


def _pixels(image: RawImage, spec: InputSpec) -> NDArray[np.uint8]:
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
    return pixels.reshape(1, spec.height, spec.width, spec.channels)
