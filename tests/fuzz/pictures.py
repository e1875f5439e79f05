"""Target: the picture path, from the bytes of a request to the classifier's input."""

import io
import warnings
from collections.abc import Iterator

import atheris

with atheris.instrument_imports(include=["foveate_runtime", "PIL"]):
    import numpy as np
    from PIL import Image

    from foveate_runtime.bundle.manifest import InputSpec
    from foveate_runtime.imaging.decode import FORMATS, ImageError, ImageLimits
    from foveate_runtime.imaging.transform import prepare

from skimage import data

from .guided import fuzz

LIMITS = ImageLimits(max_bytes=64 << 10, max_pixels=1 << 18)

_RGB = {"channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}
_GREY = {"channels": 1, "mean": (0.5,), "std": (0.5,)}
SPECS = (
    InputSpec(height=32, width=32, resize=36, interpolation="bilinear", **_RGB),
    InputSpec(height=24, width=40, resize=24, interpolation="bicubic", fit="squash", **_RGB),
    InputSpec(height=28, width=28, resize=28, interpolation="bilinear", fit="pad", **_GREY),
)


def examples() -> Iterator[bytes]:
    """Yield small pictures of every format, and the forms of it that decoders treat apart."""
    cat = Image.fromarray(data.chelsea()).resize((90, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    yield _encoded(cat, "JPEG")
    yield _encoded(cat, "JPEG", progressive=True, exif=exif)
    yield _encoded(cat.convert("L"), "JPEG")
    yield _encoded(cat.convert("CMYK"), "JPEG")
    yield _encoded(cat, "PNG")
    yield _encoded(cat.convert("P"), "PNG", exif=exif)
    yield _encoded(cat.convert("RGBA"), "PNG")
    yield _encoded(Image.fromarray(np.asarray(cat.convert("L")).astype(np.uint16) << 8), "PNG")
    yield _encoded(cat.resize((28, 28)).convert("L"), "PNG")
    yield _encoded(cat, "WEBP")
    yield _encoded(cat.convert("RGBA"), "WEBP", lossless=True)
    if "AVIF" in FORMATS:
        yield _encoded(cat, "AVIF", exif=exif)
        yield _encoded(cat.convert("L"), "AVIF")
        yield _encoded(cat, "AVIF", save_all=True, append_images=[cat.rotate(90)])
        transparent = cat.convert("RGBA")
        transparent.putalpha(99)
        yield _encoded(transparent, "AVIF", subsampling="4:4:4")
    yield _encoded(cat, "BMP")
    yield _encoded(cat.convert("1"), "BMP")
    yield _encoded(cat, "GIF", save_all=True, append_images=[cat.rotate(90)])


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def target(content: bytes) -> None:
    """Prepare a picture for one of the inputs; an ImageError is the only refusal that is right."""
    spec = SPECS[len(content) % len(SPECS)]
    try:
        pixels, view = prepare(content, spec, LIMITS)
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape == (spec.height, spec.width, spec.channels)
    assert view.source_width * view.source_height <= LIMITS.max_pixels


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fuzz(target, examples())
