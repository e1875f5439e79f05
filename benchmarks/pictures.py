"""What a picture costs by the format of its file: the server's way, and the obvious one.

python -m benchmarks.pictures [--repository DIR] [--images DIR] [--rounds N] [--page FILE]

The photographs are written at twelve megapixels as JPEG, progressive JPEG, WebP, AVIF and
PNG, and a drawn screen of 3840 x 2160 as PNG. Each file is turned into the classifier's
input as the server does, and as the obvious loop does: Pillow decodes all of it, resizes all
of it, and cuts the centre out. Both run on one thread of a process of their own, and take
turns in an order of chance; medians of the rounds are written, with the range. Where the two
inputs differ by more than rounding and reduced scales explain, the run fails.
"""

import io
import random
import statistics
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from benchmarks.loops import Pixels, obvious_pixels, server_pixels
from benchmarks.request_cost import MODEL, ratio, read_pictures, summary
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.options import option

RESULTS = Path(__file__).parent / "results" / "pictures.json"
PAGE = pages.DOCS / "performance.md"

LARGE_PIXELS = 12_000_000
SCREEN = 3840, 2160
SCREENS = "a screen of 3840 x 2160, PNG"

FORMATS: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        "JPEG": ("JPEG", {"quality": 90}),
        "progressive JPEG": ("JPEG", {"quality": 90, "progressive": True}),
        "WebP": ("WEBP", {"quality": 85}),
        "AVIF": ("AVIF", {"quality": 75, "speed": 8}),
        "PNG": ("PNG", {"compress_level": 6}),
    }
)
"""How the photographs are written, as they are encoded most often."""

WAYS: Mapping[str, Callable[[Path, InputSpec], Pixels]] = MappingProxyType(
    {"server": server_pixels, "obvious": obvious_pixels}
)

MOST_APART = 4.0
"""Levels in the mean of a picture: a reduced scale alone makes less than one."""


def enlarged(picture: bytes) -> Image.Image:
    """Return a photograph at twelve megapixels."""
    with Image.open(io.BytesIO(picture)) as image:
        factor = (LARGE_PIXELS / (image.width * image.height)) ** 0.5
        size = round(factor * image.width), round(factor * image.height)
        return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def screen(photograph: Image.Image, seed: int) -> Image.Image:
    """Draw a screen: windows with text of all lengths, bars, and a photograph in one of them."""
    chance = random.Random(seed)  # noqa: S311 - a picture, not a secret
    shown = Image.new("RGB", SCREEN, (44, 62, 80))
    draw = ImageDraw.Draw(shown)
    font = ImageFont.load_default(size=26)
    width, height = SCREEN[0] // 2 - 60, SCREEN[1] // 2 - 60
    for place in range(4):
        left, top = 40 + place % 2 * (width + 40), 40 + place // 2 * (height + 40)
        draw.rectangle((left, top, left + width, top + height), fill=(250, 250, 250))
        draw.rectangle((left, top, left + width, top + 48), fill=(chance.randrange(256), 90, 160))
        for line in range(top + 70, top + height - 40, 36):
            letters = chance.choices("etaoinshrdlu     ", k=chance.randint(10, 110))
            draw.text((left + 30, line), "".join(letters), font=font, fill=(30, 30, 30))
    inset = photograph.resize((width - 80, height - 120), Image.Resampling.BICUBIC)
    shown.paste(inset, (40 + 40, 40 + 80))
    return shown


def write(photographs: Sequence[bytes], folder: Path) -> dict[str, list[Path]]:
    """Write the files of each kind below `folder`."""
    files: dict[str, list[Path]] = {f"a photograph, {name}": [] for name in FORMATS}
    files[SCREENS] = []
    progress = partial(track, description="writing", console=Console(stderr=True))
    for number, photograph in progress(list(enumerate(photographs))):
        large = enlarged(photograph)
        for name, (kind, options) in FORMATS.items():
            path = folder / f"{number:02}-{name.replace(' ', '-')}"
            large.save(path, kind, **options)
            files[f"a photograph, {name}"].append(path)
        path = folder / f"{number:02}-screen"
        screen(large, number).save(path, "PNG")
        files[SCREENS].append(path)
    return files


def require_alike(files: Sequence[Path], spec: InputSpec) -> float:
    """Return by how many levels the two ways differ in the mean; end where it is too much."""
    apart = []
    for file in files:
        ours, theirs = (way(file, spec).astype(int) for way in WAYS.values())
        apart.append(float(np.abs(ours - theirs).mean()))
        if apart[-1] > MOST_APART:
            raise SystemExit(f"{file.name}: the ways differ by {apart[-1]:.1f} levels")
    return statistics.mean(apart)


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    pictures: int = option("how many photographs", default=8)
    rounds: int = option("of the comparison", default=9)


def measure(options: Options) -> dict[str, Any]:
    """Measure every kind of file in both ways."""
    (bundle,) = (options.repository / MODEL).glob("[0-9]*")
    spec = Bundle.open(bundle).manifest.input
    photographs = read_pictures(options.images)[: options.pictures]
    chance = random.Random(0)  # noqa: S311 - an order, not a secret
    with tempfile.TemporaryDirectory() as name:
        files = write(photographs, Path(name))
        apart = {kind: require_alike(paths, spec) for kind, paths in files.items()}
        sizes = {
            kind: statistics.median(path.stat().st_size for path in paths)
            for kind, paths in files.items()
        }
        turns = [(kind, way) for kind in files for way in WAYS]
        samples: dict[str, dict[str, list[float]]] = {
            kind: {way: [] for way in WAYS} for kind in files
        }
        for _ in track(range(options.rounds), "rounds", console=Console(stderr=True)):
            for kind, way in chance.sample(turns, len(turns)):
                start = time.process_time()
                for path in files[kind]:
                    WAYS[way](path, spec)
                taken = 1000 * (time.process_time() - start) / len(files[kind])
                samples[kind][way].append(taken)
    return {
        "benchmark": "pictures",
        "pictures": len(photographs),
        "rounds": options.rounds,
        "kinds": {
            kind: {
                "bytes": sizes[kind],
                "levels_apart": round(apart[kind], 2),
                "cpu_ms": {way: summary(values) for way, values in by.items()},
                "ratio": ratio(by["obvious"], by["server"]),
            }
            for kind, by in samples.items()
        },
        "machine": machine.describe(),
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""
    described = result["machine"]
    about = (
        f"CPU-ms a picture of {result['pictures']} photographs of twelve megapixels, and of as "
        f"many screens, on one thread of an {described['processor']}: medians of "
        f"{result['rounds']} rounds, with the range. The last column is by how many of 255 levels "
        "the inputs differ in the mean, by rounding and by what is decoded at a reduced scale."
    )
    rows = [
        [
            name,
            f"{kind['bytes'] / 1e6:.1f}",
            *(pages.middle(kind["cpu_ms"][way], 1) for way in WAYS),
            pages.middle(kind["ratio"], 2),
            f"{kind['levels_apart']:.1f}",
        ]
        for name, kind in result["kinds"].items()
    ]
    head = ["", "MB", "the server's way", "the obvious loop", "obvious / server", "levels apart"]
    return f"{textwrap.fill(about, 100)}\n\n{pages.table(head, rows)}"


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    script.finish(measure(options), page_part, options)


if __name__ == "__main__":
    main()
