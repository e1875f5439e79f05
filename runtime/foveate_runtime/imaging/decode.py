"""Encoded pictures, opened with limits."""

import io
import struct
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from foveate_runtime.imaging import avif
from foveate_runtime.imaging.chunks import SIGNATURE, has_end, without_metadata
from foveate_runtime.imaging.damage import UnsupportedError, describe, kind_of
from foveate_runtime.imaging.jpeg import (
    MAX_SCANS,
    count_scans,
    decode_jpeg,
    find_fault,
    power_of_two_scale,
    with_end,
)
from foveate_runtime.imaging.parts import (
    MAX_WEBP_PIXELS,
    TooManyPartsError,
    require_apart,
    require_few,
    with_length,
)
from foveate_runtime.imaging.room import ROOM

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", *(("AVIF",) if avif.SUPPORTED else ()))
"""The only formats whose decoders untrusted bytes reach."""

_SIGNATURES = (b"\xff\xd8\xff", SIGNATURE, b"GIF87a", b"GIF89a")
"""The first bytes of the formats, also of files that Pillow does not recognise."""
_AVIF_SIGNATURES = frozenset((b"ftypavif", b"ftypavis"))
_BMP_HEADS = frozenset(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))

MODES = MappingProxyType({1: "L", 3: "RGB", 4: "RGBA"})
"""Pillow's modes of decoded pictures, by the number of channels."""

MAX_PIXELS = 178_000_000
"""Pillow refuses more by itself: see `Image.MAX_IMAGE_PIXELS`."""

_FRAMES = 2
"""How often an AVIF may have the pixels that are the limit: its colours, and its transparency."""

COLOUR_AS_GREY = "the picture has colours, and the model takes grey ones: it saw its brightness"
DAMAGED_METADATA = "the picture's metadata is damaged and was passed over; it is taken as upright"
DAMAGED_DATA = "the JPEG's data is damaged; parts of the picture may be wrong"
DAMAGED_PROFILE = "the picture's colour profile is damaged and was passed over"
WRONG_LENGTH = "the WebP is not as long as it says; the pixels of its first picture are there"
MISSING_END = "the picture's end marker is missing; all of its pixels are there"

_EXIF_PREFIX = b"Exif\0\0"
_TIFF = (b"II", b"MM")
"""How EXIF begins: the order of its bytes."""

_PILLOW_BYTES = 4
"""Of a pixel in colour."""
_PIXEL_BYTES = {"WEBP": 16, "AVIF": 12}
"""Of a pixel, where a decoder holds more than one copy."""
_COEFFICIENT_BYTES = 2
"""libjpeg's JCOEF (jmorecfg.h)."""
_LARGE_PIXELS = 4_000_000
"""A larger picture is not copied where that can be avoided; grey is repeated once it is resized."""
_STRIP = 256
"""Rows that are reduced to eight bits at once."""

_SAMPLE = (16, 16)
_LEAST_COLOUR = 8.0
"""Levels between the channels of a pixel, in the mean: rounding in a grey JPEG leaves fewer."""

Reason = Literal["IMAGE_EMPTY", "IMAGE_TOO_LARGE", "IMAGE_UNSUPPORTED", "IMAGE_CORRUPT"]

# What Pillow is known to raise on large, unknown and malformed files.
_REFUSED = (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,  # libavif's errors
    struct.error,
    zlib.error,
)


class ImageError(Exception):
    """A picture that cannot be used, with the reason and the limit it breaks, if any."""

    def __init__(self, reason: Reason, message: str, *, limit: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.limit = limit


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What is accepted: checked before any pixel is decoded.

    `max_pixels` counts width times height and is at most `MAX_PIXELS`. A JPEG has at
    most `MAX_SCANS` times as many pixels in all of its scans together, and no more than
    `max_scans` of them where that is given.
    """

    max_bytes: int = 16 << 20
    max_pixels: int = 50_000_000
    max_scans: int | None = None


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """How the stored rows and columns become the upright picture, by EXIF.

    `mirror_x` and `mirror_y` turn the stored picture over, then `swap`
    exchanges its axes.
    """

    transpose: Image.Transpose | None
    swap: bool
    mirror_x: bool
    mirror_y: bool


UPRIGHT = Orientation(transpose=None, swap=False, mirror_x=False, mirror_y=False)

# The tag's values in Exif 2.3, section 4.6.4, "Orientation".
_ORIENTATIONS = {
    2: Orientation(
        transpose=Image.Transpose.FLIP_LEFT_RIGHT, swap=False, mirror_x=True, mirror_y=False
    ),
    3: Orientation(transpose=Image.Transpose.ROTATE_180, swap=False, mirror_x=True, mirror_y=True),
    4: Orientation(
        transpose=Image.Transpose.FLIP_TOP_BOTTOM, swap=False, mirror_x=False, mirror_y=True
    ),
    5: Orientation(transpose=Image.Transpose.TRANSPOSE, swap=True, mirror_x=False, mirror_y=False),
    6: Orientation(transpose=Image.Transpose.ROTATE_270, swap=True, mirror_x=False, mirror_y=True),
    7: Orientation(transpose=Image.Transpose.TRANSVERSE, swap=True, mirror_x=True, mirror_y=True),
    8: Orientation(transpose=Image.Transpose.ROTATE_90, swap=True, mirror_x=True, mirror_y=False),
}


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A decoded picture as it is stored, perhaps at a reduced scale.

    `image` has one of `MODES`, or is uint8 [rows, columns, 3]. `width` and
    `height` are the stored picture's at full scale, and the whole of it covers
    `extent` (width, height) of `image`, which a reduced scale makes fractional.
    """

    image: Image.Image | NDArray[np.uint8]
    width: int
    height: int
    extent: tuple[float, float]
    orientation: Orientation
    warnings: tuple[str, ...] = ()
    """What to know of the picture, for a person."""

    @property
    def size(self) -> tuple[int, int]:
        """The width and the height of `image`."""
        if isinstance(self.image, Image.Image):
            return self.image.size
        rows, columns, _ = self.image.shape
        return columns, rows


def decode(
    data: bytes,
    *,
    channels: int,
    limits: ImageLimits,
    shorter_side: int | None = None,
    held: ExitStack | None = None,
) -> Decoded:
    """Decode the first frame of an encoded picture to 1 (grey), 3 (RGB) or 4 (RGBA) channels.

    Colours follow torchvision's loader, `Image.convert("RGB")`: an alpha channel
    is dropped, not composited, unless it is the fourth one. Sixteen bits are scaled
    to eight, where that loader would clip grey ones. With `shorter_side`, a JPEG may be
    decoded at a reduced scale whose shorter side is still at least that long, which
    costs less. With `held`, the picture waits for room in memory (`ROOM`), which it has until
    `held` is closed, and a large one in grey is left so. Raises ImageError.
    """
    if channels not in MODES:
        raise ImageError(
            "IMAGE_UNSUPPORTED",
            f"a picture has 1, 3 or 4 channels, and the model takes {channels}; "
            "send its values as they are",
        )
    if not data:
        raise ImageError("IMAGE_EMPTY", "the picture has no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError(
            "IMAGE_TOO_LARGE",
            f"the picture has {len(data)} bytes; the limit is {limits.max_bytes} bytes",
            limit=limits.max_bytes,
        )
    read = partial(
        _decode, mode=MODES[channels], limits=limits, shorter_side=shorter_side, held=held
    )
    try:
        require_few(data)
        if data.startswith(SIGNATURE):
            return _decode_png(data, read)
        if avif.is_avif(data):
            return read(_still_avif(data, limits))
        return _decode_other(data, read, limits)
    except TooManyPartsError as error:
        raise ImageError("IMAGE_UNSUPPORTED", str(error), limit=error.limit) from error
    except _REFUSED as error:
        raise _image_error(error, data, limits) from error


_Read: TypeAlias = Callable[[bytes], Decoded]


def _decode_png(data: bytes, read: _Read) -> Decoded:
    """Decode a PNG, whose metadata Pillow would inflate, and refuse the picture for."""
    used = without_metadata(data, everything=False)
    warnings: tuple[str, ...] = () if has_end(data) else (MISSING_END,)
    try:
        decoded = read(used)
    except _REFUSED:
        bare = without_metadata(used, everything=True)
        if len(bare) == len(used):
            raise
        decoded = read(bare)
        warnings = (DAMAGED_METADATA, *warnings)
    return replace(decoded, warnings=(*decoded.warnings, *warnings)) if warnings else decoded


def _still_avif(data: bytes, limits: ImageLimits) -> bytes:
    """Return an AVIF without its metadata; refuse what its decoder would take too much for."""
    if not avif.SUPPORTED:
        raise ImageError(
            "IMAGE_UNSUPPORTED",
            "the picture is an AVIF, which is read with Pillow 11.3 or later; "
            f"send it as one of {', '.join(FORMATS)}",
        )
    contents = avif.look(data)
    for width, height in contents.sizes:
        _require_pixels("AVIF", width, height, limits)
    limit = _FRAMES * min(limits.max_pixels, avif.MAX_AVIF_PIXELS)
    if contents.coded > limit:
        raise ImageError(
            "IMAGE_TOO_LARGE",
            f"the frames of the AVIF have {contents.coded} pixels together; "
            f"the limit is {limit} pixels",
            limit=limit,
        )
    if contents.moves and not contents.sizes:
        raise ImageError(
            "IMAGE_UNSUPPORTED",
            "the AVIF is a sequence without a still picture; send one of its frames",
        )
    return avif.still(data)


def _decode_other(data: bytes, read: _Read, limits: ImageLimits) -> Decoded:
    """Decode a picture that is no PNG.

    A JPEG may lack its end marker, and a WebP's length may be wrong, but no more.
    """
    try:
        return read(data)
    except _REFUSED:
        mended, warning = with_length(data), WRONG_LENGTH
        if mended is None:
            # What cannot be opened, or is too large, is not decoded to look for its end.
            with _open(data, limits) as image:
                mended, warning = with_end(data, image.mode), MISSING_END
        if mended is None:
            raise
    decoded = read(mended)
    return replace(decoded, warnings=(*decoded.warnings, warning))


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """Read the header of a picture, and refuse what is beyond the limits."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    _require_pixels(image.format, width, height, limits)
    if isinstance(image, JpegImageFile):
        _require_few_scans(data, width * height, limits)
    return image


def _require_pixels(kind: str | None, width: int, height: int, limits: ImageLimits) -> None:
    limit, name = limits.max_pixels, "picture"
    if kind == "WEBP" and limit > MAX_WEBP_PIXELS:
        limit, name = MAX_WEBP_PIXELS, "WebP"
    elif kind == "AVIF" and limit > avif.MAX_AVIF_PIXELS:
        limit, name = avif.MAX_AVIF_PIXELS, "AVIF"
    if width * height > limit:
        raise ImageError(
            "IMAGE_TOO_LARGE",
            f"the {name} has {width} x {height} = {width * height} pixels; "
            f"the limit is {limit} pixels",
            limit=limit,
        )


def _decode(
    data: bytes,
    *,
    mode: str,
    limits: ImageLimits,
    shorter_side: int | None,
    held: ExitStack | None,
) -> Decoded:
    with _open(data, limits) as image:
        width, height = image.size
        _require_palette(image)
        scale, warnings = 1, []
        stored: Image.Image = image
        pixels: Image.Image | NDArray[np.uint8] | None = None
        if isinstance(image, JpegImageFile):
            if shorter_side is not None:
                scale = power_of_two_scale(min(width, height), shorter_side)
            _wait_for_room(held, _jpeg_bytes(image, scale))
            decoded = decode_jpeg(data, image.mode, width, height, scale)
            if decoded is None:
                fault = find_fault(data, image.mode)
                if fault == "cut off":
                    raise OSError("a scan ends before its last pixel")
                if fault:
                    warnings.append(DAMAGED_DATA if fault == "damaged" else DAMAGED_PROFILE)
                if scale > 1:
                    image.draft(None, (width // scale, height // scale))
            elif image.mode == mode == "RGB":
                pixels = decoded
            else:
                stored = Image.fromarray(decoded)
        else:
            bytes_each = _PIXEL_BYTES.get(image.format or "", _PILLOW_BYTES)
            _wait_for_room(held, width * height * bytes_each)
        if pixels is None:
            large = held is not None and width * height > scale * scale * _LARGE_PIXELS
            pixels = _convert(stored, mode, large=large)
            if mode == "L" and _has_colours(stored):
                warnings.append(COLOUR_AS_GREY)
        orientation = _orientation(image)
        if orientation is None:
            warnings.append(DAMAGED_METADATA)
        return Decoded(
            image=pixels,
            width=width,
            height=height,
            extent=(width / scale, height / scale),
            orientation=orientation or UPRIGHT,
            warnings=tuple(warnings),
        )


def _require_palette(image: Image.Image) -> None:
    """Raise OSError for a PNG without the palette that it refers to: Pillow would make one up."""
    has_palette = image.palette is not None and image.palette.palette
    if image.format == "PNG" and image.mode == "P" and not has_palette:
        raise OSError("the palette is missing")


def _wait_for_room(held: ExitStack | None, size: int) -> None:
    if held is not None:
        # What a first try of the same file held, before it was mended.
        held.close()
        held.enter_context(ROOM.hold(size))


def _jpeg_bytes(image: JpegImageFile, scale: int) -> int:
    """Return the bytes that a JPEG takes: libjpeg holds all coefficients of a progressive one."""
    pixels = image.width * image.height
    coefficients = _COEFFICIENT_BYTES * len(image.layer) * pixels
    return (coefficients if "progressive" in image.info else 0) + (
        _PILLOW_BYTES * pixels // scale**2
    )


def _require_few_scans(data: bytes, pixels: int, limits: ImageLimits) -> None:
    limit = MAX_SCANS * limits.max_pixels // pixels
    if limits.max_scans is not None:
        limit = min(limit, limits.max_scans)
    scans = count_scans(data, limit)
    if scans > limit:
        raise ImageError(
            "IMAGE_UNSUPPORTED",
            f"the JPEG has {scans} scans; the limit for {pixels} pixels is {limit} scans",
            limit=limit,
        )


def _has_colours(image: Image.Image) -> bool:
    """Return whether a decoded picture shows colours, which grey ones in RGB do not."""
    if image.mode.startswith(("1", "L", "I")):
        return False
    few = image.resize(_SAMPLE, Image.Resampling.NEAREST).convert("RGB")
    return float(np.ptp(np.asarray(few), axis=2).mean()) > _LEAST_COLOUR


def _orientation(image: Image.Image) -> Orientation | None:
    """Return the orientation in a picture's metadata, which in a PNG may follow the pixels.

    To call once the pixels are decoded. None where the metadata is malformed. Raises
    TooManyPartsError.
    """
    try:
        exif = _exif(image)
        require_apart(exif)
        tags = exif.removeprefix(_EXIF_PREFIX).removeprefix(_EXIF_PREFIX)
        if tags and not tags.startswith(_TIFF):
            return None
        return _ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1), UPRIGHT)
    except _REFUSED:
        return None


def _exif(image: Image.Image) -> bytes:
    """Return the EXIF of a picture as Pillow will read it; raises ValueError."""
    exif = image.info.get("exif", b"")
    text = image.info.get("Raw profile type exif")
    return bytes.fromhex("".join(text.split("\n")[3:])) if text and not exif else exif


def _convert(image: Image.Image, mode: str, *, large: bool) -> Image.Image:
    """Return a picture in a mode; a large one that is to be RGB may be L."""
    image.load()
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if mode != "RGBA":
        # Alpha is dropped in any case; left in place, Pillow warns about it.
        image.info.pop("transparency", None)
    if large and mode == "RGB":
        if image.mode == "RGBA":
            return _without_alpha(image)
        if image.mode in {"1", "L", "LA"}:
            mode = "L"
    return image.convert(mode) if image.mode != mode else image


def _without_alpha(image: Image.Image) -> Image.Image:
    """Return the same pixels as RGB: either mode has four bytes a pixel, and a copy as many again.

    Pillow's own `putalpha` changes the mode in place so.
    """
    image.im.setmode("RGB")
    return image._new(image.im)  # noqa: SLF001


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the upper eight of sixteen bits, in strips: a copy in 32 bits takes twice as much."""
    grey = Image.new("L", image.size)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        upper = (np.asarray(strip).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        grey.paste(Image.fromarray(upper), (0, top))
    return grey


def _image_error(error: Exception, data: bytes, limits: ImageLimits) -> ImageError:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageError(
            "IMAGE_TOO_LARGE",
            f"the picture has more than {limits.max_pixels} pixels, which is the limit",
            limit=limits.max_pixels,
        )
    if isinstance(error, UnidentifiedImageError) and not _is_recognised(data):
        kind = kind_of(data)
        told = f"the bytes are {kind}, and no picture" if kind else "the bytes are no picture"
        return ImageError("IMAGE_UNSUPPORTED", f"{told} in one of {', '.join(FORMATS)}")
    try:
        damage = describe(data)
    except UnsupportedError as unsupported:
        return ImageError("IMAGE_UNSUPPORTED", str(unsupported))
    return ImageError("IMAGE_CORRUPT", f"the picture is truncated or damaged: {damage}")


def _is_recognised(data: bytes) -> bool:
    is_webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    is_bmp = data.startswith(b"BM") and data[14:18] in _BMP_HEADS
    is_avif = data[4:12] in _AVIF_SIGNATURES
    return is_webp or is_bmp or is_avif or data.startswith(_SIGNATURES)
