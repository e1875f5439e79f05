"""Converts pictures of every supported kind to a field of a request, and decodes them."""

# ruff: noqa: PLC0415 - a file is sent as it is, and needs neither numpy nor Pillow

from __future__ import annotations

import io
import os
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, cast

from foveate.v1.classifier_service_pb2 import RawImage
from foveate_client._exceptions import ImageError, TooMuchMemoryError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_UNSCALED_MODES = frozenset({"F", "I"})
_FAST = 1
_MALFORMED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    struct.error,
)
"""What Pillow raises for pictures and metadata that are damaged."""

_AVIF_METADATA = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))(?:Exif|mime)", re.DOTALL)
"""An entry of an AVIF's items up to its kind (ISO/IEC 14496-12, `ItemInfoEntry`)."""

_STRIP = 256
"""Rows that are reduced at once."""

MAX_FILE_BYTES = 256 * 2**20
"""A file above this size is not read: no message may be as large."""

_MAX_COEFFICIENT_BYTES = 192 * 2**20
_COEFFICIENT_BYTES = 2
"""libjpeg's JCOEF (jmorecfg.h)."""
_START_OF_SCAN = 0xFFDA


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture that already is the classifier's input: the server neither resizes nor crops it.

    `pixels` is uint8 [height, width, channels], of the size and channels of
    the model's `input`. A picture of any other size is passed as an array or a
    PIL image, without this class.
    """

    pixels: npt.NDArray[np.uint8]


ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8] | Prepared"
)
"""What can be classified: a file's path, a file's bytes, a PIL image, or a uint8
array [height, width], [height, width, 1], or [height, width, 3 or 4] in red, green,
blue and alpha."""


def image_field(image: ImageInput) -> dict[str, Any]:
    """Return the field of a ClassifyRequest that carries `image`, as a keyword argument.

    A file is sent as it is. Raises ImageError where the picture cannot be read
    and TypeError where `image` is no picture at all.
    """
    if isinstance(image, Prepared):
        return {"raw": _raw(image.pixels)}
    if isinstance(image, bytes):
        return {"encoded": image}
    if isinstance(image, str | os.PathLike):
        return {"encoded": _read(Path(image))}
    if _is_array(image):
        return {"encoded": _png(_from_array(image))}
    if _is_picture(image):
        return {"encoded": _png(_upright(image))}
    raise TypeError(
        "an image is a path, bytes, a PIL image, a uint8 array or Prepared, "
        f"not {type(image).__name__}"
    )


def open_upright(image: ImageInput) -> Image.Image:
    """Return `image` as an RGB picture of its own, turned as its EXIF orientation says.

    Raises ImageError where it cannot be read.
    """
    return open_reduced(image, None)[0]


def open_reduced(image: ImageInput, largest: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """Return the same, and its own size, with at most `largest` pixels on the longer side.

    A larger one is reduced by a whole number before it is converted and turned, so
    that no second picture of its size is held. Raises TooMuchMemoryError for a JPEG
    in several scans that cannot be reduced within 192 MiB.
    """
    if isinstance(image, Prepared):
        return _reduced(_from_array(image.pixels), largest)
    if _is_array(image):
        return _reduced(_from_array(image), largest)
    if _is_picture(image):
        return _reduced(image, largest)
    path_or_bytes = cast("str | os.PathLike[str] | bytes", image)
    data = path_or_bytes if isinstance(path_or_bytes, bytes) else _read(Path(path_or_bytes))
    try:
        return _decoded(data, largest)
    except TooMuchMemoryError:
        raise
    except ImageError:
        mended = _mended(data)
        if mended == data:
            raise
    return _decoded(mended, largest)


def _decoded(data: bytes, largest: int | None) -> tuple[Image.Image, tuple[int, int]]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(_upright_by_itself(data))) as opened:
            size = opened.size
            if (factor := _factor(size, largest)) > 1:
                _require_few_coefficients(opened, data)
                # A JPEG is decoded at an eighth of its size, or more.
                opened.draft(None, (-(-size[0] // factor), -(-size[1] // factor)))
            opened.load()
            return _reduced(opened, largest)[0], _upright_size(size, opened)
    except UnidentifiedImageError as error:
        raise ImageError(
            "cannot draw on the picture: Pillow, as it is installed here, does not read it"
        ) from error
    except (*_MALFORMED, Image.DecompressionBombError) as error:
        raise ImageError(f"cannot draw on the picture: {error}") from error


def _require_few_coefficients(image: Image.Image, data: bytes) -> None:
    """Raise TooMuchMemoryError for a JPEG whose coefficients take too much, at any scale.

    libjpeg holds those of all components until the last scan, unless the first scan has
    all components and no other follows (jdmaster.c, has_multiple_scans).
    """
    layers = [(across, down) for _, across, down, _ in getattr(image, "layer", ())]
    if not layers or not _in_several_scans(data, len(layers), image):
        return
    most_across, most_down = (max(factors) for factors in zip(*layers, strict=True))
    share = sum(across * down for across, down in layers) / (most_across * most_down)
    needed = int(share * image.width * image.height) * _COEFFICIENT_BYTES
    if needed > _MAX_COEFFICIENT_BYTES:
        raise TooMuchMemoryError(
            f"cannot draw on the picture: a JPEG in several scans of {image.width} x "
            f"{image.height} pixels takes {needed >> 20} MiB to decode; the limit is "
            f"{_MAX_COEFFICIENT_BYTES >> 20} MiB"
        )


def _in_several_scans(data: bytes, components: int, image: Image.Image) -> bool:
    if "progressive" in image.info:
        return True
    position = 2
    while position + 5 <= len(data):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == _START_OF_SCAN:
            return data[position + 4] < components
        # Any number of 0xFF may stand before a marker (ITU-T T.81, section B.1.1.2).
        position += 1 if marker == 0xFFFF else 2 + length
    return False


def _factor(size: tuple[int, int], largest: int | None) -> int:
    return 1 if largest is None else -(-max(size) // largest)


def _reduced(image: Image.Image, largest: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """Return an RGB copy of at most `largest` pixels, upright, and the upright picture's size."""
    from PIL import Image

    factor = _factor(image.size, largest)
    if factor == 1:
        return _rgb(_upright(image)), _upright_size(image.size, image)
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    rows = factor * max(1, _STRIP // factor)
    for upper in range(0, image.height, rows):
        strip = image.crop((0, upper, image.width, min(upper + rows, image.height)))
        small.paste(_rgb(strip).reduce(factor), (0, upper // factor))
    small.info = dict(image.info)
    return _upright(small), _upright_size(image.size, image)


def _upright_size(size: tuple[int, int], image: Image.Image) -> tuple[int, int]:
    """Return the size of a picture of `size` once it is turned as the EXIF of `image` says."""
    from PIL import ExifTags

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _MALFORMED:
        return size
    return size[::-1] if orientation in {5, 6, 7, 8} else size


def _upright_by_itself(data: bytes) -> bytes:
    """Return an AVIF without EXIF and XMP, which do not turn it; anything else as it is.

    As the server does; and Pillow refuses an AVIF whose EXIF is damaged.
    """
    return _AVIF_METADATA.sub(rb"\1skip", data) if data[4:8] == b"ftyp" else data


def _mended(data: bytes) -> bytes:
    """Return a file that the server classifies, and Pillow refuses, so that Pillow reads it."""
    if data.startswith(b"\xff\xd8"):
        return data if data.endswith(b"\xff\xd9") else data + b"\xff\xd9"
    if data.startswith(b"RIFF"):
        return _with_length(data)
    return _without_metadata(data)


def _with_length(data: bytes) -> bytes:
    """Return a WebP up to its last whole chunk, with that length in its head."""
    whole = 12
    while whole + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, whole + 4)
        if whole + 8 + length > len(data):
            break
        # A chunk of odd length has a byte behind it, which the last one may lack.
        whole += 8 + length + length % 2
    body = data[8:whole].ljust(whole - 8, b"\0")
    return data[:4] + struct.pack("<I", len(body)) + body


def _without_metadata(data: bytes) -> bytes:
    """Return a PNG without its ancillary chunks, but for the orientation; anything else as it is.

    Pillow refuses large or damaged metadata, for which the server refuses no picture.
    """
    kept, position = [data[:8]], 8
    while data.startswith(b"\x89PNG\r\n\x1a\n") and position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if name[:1].isupper() or name == b"eXIf":
            kept.append(data[position:end])
        position = end
    return b"".join((*kept, data[position:]))


def _is_array(image: object) -> TypeGuard[npt.NDArray[Any]]:
    # An array exists only where numpy was imported.
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(image, numpy.ndarray)


def _is_picture(image: object) -> TypeGuard[Image.Image]:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except _MALFORMED:
        # As on the server, malformed EXIF is ignored.
        return image


def _rgb(image: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image

    # As the server sees it: alpha is dropped, sixteen bits become eight.
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _native(image: Image.Image) -> Image.Image:
    """Return a picture of 16 bits in the order of bytes that Pillow writes."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.asarray(image).astype(np.uint16))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise ImageError(f"{path} has {size} bytes; the limit is {MAX_FILE_BYTES} bytes")
            if size:
                return file.read()
            # A pipe or a device has no size, and may have no end.
            data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise ImageError(f"{path} has no end within {MAX_FILE_BYTES} bytes, the limit")
            return data
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        # A name that no file can have.
        raise ImageError(f"cannot read {str(path)!r}: {error}") from error


def _from_array(pixels: npt.NDArray[Any]) -> Image.Image:
    from PIL import Image

    if pixels.dtype != "uint8":
        raise ImageError(f"an image array has dtype uint8, not {pixels.dtype}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or pixels.shape[2:] in ((3,), (4,))):
        raise ImageError(
            "an image array has the shape [height, width], [height, width, 1], "
            f"[height, width, 3] or [height, width, 4], not {list(pixels.shape)}"
        )
    return Image.fromarray(pixels)


def _raw(pixels: npt.NDArray[Any]) -> RawImage:
    if pixels.dtype != "uint8" or pixels.ndim != 3:
        raise ImageError(
            "a prepared image is uint8 [height, width, channels], "
            f"not {pixels.dtype} {list(pixels.shape)}"
        )
    height, width, channels = pixels.shape
    return RawImage(height=height, width=width, channels=channels, data=pixels.tobytes())


def _png(image: Image.Image) -> bytes:
    if image.mode in _UNSCALED_MODES:
        raise ImageError(
            f"an image of mode {image.mode} has no range of its own; "
            "scale its values to 0..255 and convert it to L"
        )
    if image.mode.startswith("I;16"):
        image = _native(image)
    if image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    buffer = io.BytesIO()
    # The picture is sent once: a fast encoding saves more time than a small file.
    image.save(buffer, "PNG", compress_level=_FAST)
    return buffer.getvalue()
