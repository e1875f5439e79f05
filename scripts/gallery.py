"""Draw docs/gallery.md: every kind of `foveate visualize`, on real weights and real digits.

python scripts/gallery.py [NAME ...]

Without names all pictures are drawn, from a network that a minute's training on MNIST gives and
from the EfficientNet-Lite0 of its package, on photographs of scikit-image.
"""

import shlex
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from skimage import data

from foveate_train.commands import train, visualize

DOCS = Path(__file__).parents[1] / "docs"
FOLDER = DOCS / "gallery"
PHOTOGRAPHS = {
    "cat": data.chelsea,
    "coffee": data.coffee,
    "tissue": data.immunohistochemistry,
}
LITE0 = "package:efficientnet_lite0"
DIGITS = "checkpoint"
_WIDEST = 1000
_INTRODUCTION = (
    "What [`foveate visualize`](train/visualize.md) draws, from the weights of EfficientNet-Lite0 "
    "and from a convnet4 after one epoch on MNIST. `make gallery` draws it again; the photographs "
    "are those of scikit-image."
)


class Drawing(NamedTuple):
    """A picture of the gallery.

    Attributes:
        name: of its file, with the ending.
        title: above it.
        arguments: of `foveate visualize`, without --out.
        written: the picture among those that the command writes.
        caption: what it shows.
    """

    name: str
    title: str
    arguments: str
    written: str
    caption: str

    @property
    def command(self) -> str:
        """What draws it, as typed."""
        return f"foveate visualize {self.arguments} --out {self.name.partition('.')[0]}"


DRAWINGS = (
    Drawing(
        "digits-features.png",
        "What the layers answer to",
        f"features {DIGITS}",
        "features.png",
        "Three channels of each size of maps of convnet4, for one digit of each class. The first "
        "layer answers to strokes and their edges; the maps of the last are coarse.",
    ),
    Drawing(
        "digits-strokes.png",
        "Channels of upright strokes",
        f"features {DIGITS} --strokes 90 --layers layer1 layer2",
        "features.png",
        "The channels that answer most to an upright stroke, found with drawn strokes of twelve "
        "directions, and what they answer to in the digits.",
    ),
    Drawing(
        "cat-cam.png",
        "Where the five best classes are seen",
        f"cam {LITE0} cat.jpg --methods all",
        "cam-cat.png",
        "The five best classes of a photograph side by side, by three methods at the last layer "
        "that gives maps. The maps of the cats are alike, and so are the methods.",
    ),
    Drawing(
        "coffee-layers.png",
        "One class, layer by layer",
        f"cam {LITE0} coffee.jpg --class espresso --layers all --methods layercam",
        "cam-coffee.png",
        "LayerCAM of the class espresso at a layer of each size of maps: edges in the first "
        "layers, and the cup in the last ones.",
    ),
    Drawing(
        "lite0-filters.png",
        "What filters look for, and what each means does",
        f"maximise {LITE0} --layers blocks.2 --units 0 1 2 3 --jitter 4 --variation 0.001 "
        "--frequency --compare --steps 32",
        "maximise.png",
        "Pictures that four filters of EfficientNet-Lite0 answer to most, without any means, with "
        "each alone, and with all. Climbing by waves does most: stripes become areas of "
        "one colour. A variation of 0.001 changes little.",
    ),
    Drawing(
        "digits-classes.png",
        "The ten classes with and without a penalty of ink",
        f"maximise {DIGITS} --of class --units 0 1 2 3 4 5 6 7 8 9 --l1 0.05 --compare",
        "maximise.png",
        "Pictures that the classes of convnet4 answer to most. With a penalty of 0.05 for ink the "
        "strokes are left that raise the class by more than they cost.",
    ),
    Drawing(
        "cat-dream.png",
        "A dream",
        f"dream {LITE0} cat.jpg --layers blocks.4",
        "dream-cat.png",
        "A photograph after gradient ascent on all activations of blocks.4, at three sizes: eyes "
        "and muzzles grow wherever something is a little like them.",
    ),
    Drawing(
        "cat-style.png",
        "One picture in the style of another",
        f"style {LITE0} cat.jpg tissue.jpg",
        "style.png",
        "A photograph of a cat with the colours and textures of stained tissue.",
    ),
    Drawing(
        "digits-fool.png",
        "Taken for another class",
        f"fool {DIGITS} --class 8 --noise 3 --step 0.3",
        "fool.png",
        "Digits after one step of the fast gradient sign towards the 8, and noise that is moved "
        "until it is called a 3, with the maps before and after.",
    ),
    Drawing(
        "digits-receptive.png",
        "How much a unit sees",
        f"receptive {DIGITS}",
        "receptive.png",
        "The receptive field of the middle unit of three layers, computed and measured.",
    ),
    Drawing(
        "digits-embed.png",
        "Digits as the network sees them",
        f"embed {DIGITS} mnist --limit 500",
        "embed.png",
        "The penultimate features of 500 test digits by t-SNE, with frames coloured by class. The "
        "command writes a page too, with the nearest neighbours of each.",
    ),
    Drawing(
        "convolution.gif",
        "A convolution, window by window",
        "arithmetic window",
        "arithmetic-window.gif",
        "129, 161, 225 and 257, from four windows of 2 x 2.",
    ),
    Drawing(
        "max-pooling.png",
        "Max-pooling of two maps",
        "arithmetic max-pooling",
        "arithmetic-max-pooling.png",
        "Four of the eight windows of the maps that two filters of 3 x 3 gave.",
    ),
)


def page() -> str:
    """Return the text of docs/gallery.md."""
    parts = [
        "# Gallery",
        _INTRODUCTION,
    ]
    for drawing in DRAWINGS:
        parts += [
            f"## {drawing.title}",
            f"![{drawing.title}](gallery/{drawing.name})",
            drawing.caption,
            f"    {drawing.command}",
        ]
    return "\n\n".join(parts) + "\n"


def main(names: list[str]) -> int:
    """Draw the pictures of these names, or all, and write the page; return the exit code."""
    chosen = [each for each in DRAWINGS if not names or each.name in names]
    if unknown := set(names) - {each.name for each in DRAWINGS}:
        print(f"no picture of the gallery is called {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, picture in PHOTOGRAPHS.items():
            Image.fromarray(picture()).save(work / f"{name}.jpg", quality=95)
        checkpoint = work / DIGITS
        if any(DIGITS in each.arguments.split() for each in chosen):
            made = train.main(["mnist", "--model", "foveate:convnet4", "--out", str(checkpoint)])
            if made:
                return made
        FOLDER.mkdir(exist_ok=True)
        for number, drawing in enumerate(chosen, 1):
            print(f"{number} of {len(chosen)}: {drawing.command}", file=sys.stderr)
            words = [
                str(work / word) if word == DIGITS or word.endswith(".jpg") else word
                for word in shlex.split(drawing.arguments)
            ]
            out = work / drawing.name
            if failed := visualize.main([*words, "--out", str(out)]):
                return failed
            _keep(out / drawing.written, FOLDER / drawing.name)
    (DOCS / "gallery.md").write_text(page(), encoding="utf-8")
    return 0


def _keep(source: Path, target: Path) -> None:
    """Copy a picture; one that is no animation in 256 colours, and no wider than is shown."""
    if source.suffix == ".gif":
        target.write_bytes(source.read_bytes())
        return
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((_WIDEST, 4 * _WIDEST), Image.Resampling.LANCZOS)
    picture.quantize(256).save(target, optimize=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
