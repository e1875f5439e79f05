"""`foveate visualize embed`: a folder of pictures, laid out as a network sees them."""

import base64
import colorsys
import html
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import torch
from PIL import Image
from pydantic import Field
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch.nn import functional

from foveate_train.data import mnist
from foveate_train.data.draws import generator
from foveate_train.data.folder import Corrupt, scan
from foveate_train.data.memory import normalise
from foveate_train.data.preprocess import preprocess
from foveate_train.drawing import new_figure
from foveate_train.errors import DataError, MissingPackageError, SettingsError, WeightsError
from foveate_train.options import As, Command
from foveate_train.penultimate import head_of, penultimate
from foveate_train.progress import tracked
from foveate_train.visualize.options import VisualizeOptions
from foveate_train.visualize.subject import Subject, shortened, takes_digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MNIST = "mnist"
_AT_ONCE = 16
_LEAST = 4
_DIMENSIONS = 50
"""What t-SNE and UMAP are given, after a PCA."""
_PERPLEXITY = 30.0
_THUMB = 48
_CANVAS = 1100
_NAMED = 20
"""Of more folders the PNG has no legend."""
_ACROSS = 32
"""Thumbnails in a row of the page's one picture of them."""


class EmbedOptions(VisualizeOptions):
    """Lay the pictures of a folder out as a network sees them: alike is near.

    What the head is given, the penultimate features, becomes two dimensions. embed.html is a page
    of its own with thumbnails and the nearest neighbours of each, coloured by folder; embed.png
    shows the thumbnails. embed-features.npy holds [pictures, features]; embed-points.npy,
    [pictures, 2]; embed-neighbours.npy, the numbers of the nearest by cosine, the nearest first;
    embed-labels.npy, the number of each folder.

        foveate visualize embed package:efficientnet_lite0 photographs --out embed
    """

    folder: Annotated[Path, As("DIR", names=("folder",))]
    """A folder with a folder for each class, or the word mnist: MNIST's test set"""
    method: Literal["tsne", "pca", "umap"] = "tsne"
    """How many dimensions become two; umap needs the extra umap"""
    limit: Annotated[int, Field(ge=_LEAST, le=5000)] = 1000
    """At most so many pictures, as many of each class, drawn from the seed"""
    neighbours: Annotated[int, Field(ge=1, le=20)] = 6
    """Nearest neighbours of each picture"""
    corrupt: Corrupt = "fail"
    """Whether files that cannot be decoded end this (fail), or are left out (skip)"""
    data: Path | None = None
    """A folder with the IDX files of MNIST"""


class Embedded(NamedTuple):
    """Pictures as a network sees them.

    Attributes:
        names: of the pictures.
        labels: int64 [N], of each the number of its folder.
        classes: the names of the folders.
        thumbnails: uint8 [N, side, side, 3].
        features: float32 [N, features].
    """

    names: Sequence[str]
    labels: torch.Tensor
    classes: Sequence[str]
    thumbnails: torch.Tensor
    features: torch.Tensor


def run(options: EmbedOptions) -> int:
    """Embed and draw; return 0.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    subject = options.subject()
    _check(options.method)
    found = embedded(options, subject)
    count = len(found.names)
    near = nearest(found.features, min(options.neighbours, count - 1))
    points = laid_out(found.features, options.method, options.seed)
    print(
        f"{count} pictures of {len(found.classes)} folders, {found.features.shape[1]} features"
        f"{_agreement(found.labels, near)}"
    )
    title = f"{subject.classifier.name}, {options.folder.name}: {options.method}, {count} pictures"
    text = page(found, points, near, title)
    options.keep(
        "embed",
        _figure(found, points, title),
        features=found.features,
        points=points,
        neighbours=near,
        labels=found.labels,
    )
    # A folder's name may hold bytes that are no text.
    options.write({"embed.html": lambda file: file.write_text(text, "utf-8", errors="replace")})
    return 0


class _Source(NamedTuple):
    """Pictures that are to be read: names, labels [N] and classes, and what reads some, by number.

    What it reads is the network's input, [N, C, H, W].
    """

    names: Sequence[str]
    labels: torch.Tensor
    classes: Sequence[str]
    read: Callable[[Sequence[int]], torch.Tensor]


def embedded(options: EmbedOptions, subject: Subject) -> Embedded:
    """Return the pictures of the folder as the network sees them.

    Raises:
        DataError: they cannot be had, or are too few.
        SettingsError: MNIST is asked for and the network does not take digits.
        WeightsError: the features are not finite.
    """
    of_mnist = str(options.folder) == _MNIST and not options.folder.is_dir()
    source = (_digits if of_mnist else _photographs)(options, subject)
    count = len(source.names)
    if count < _LEAST:
        raise DataError(f"{options.folder}: has {count} pictures; the least is {_LEAST}")
    head = head_of(
        subject.module,
        torch.zeros(subject.input_shape, device=subject.device),
        len(subject.classifier.labels),
    )
    thumbnails = []
    with torch.no_grad(), penultimate(subject.module, head) as seen:
        for start in tracked(range(0, count, _AT_ONCE), "features"):
            images = source.read(range(start, min(start + _AT_ONCE, count)))
            subject.module(images.to(subject.device))
            thumbnails.append(_thumbnails(subject, images))
    features = torch.cat(seen)
    if not features.isfinite().all():
        raise WeightsError(f"{subject.classifier.name} makes features that are not finite numbers")
    return Embedded(*source[:3], torch.cat(thumbnails), features)


def _digits(options: EmbedOptions, subject: Subject) -> _Source:
    if not takes_digits(subject):
        raise SettingsError(f"DIR mnist: {subject.classifier.name} is no classifier of digits")
    images, targets = map(torch.from_numpy, mnist.load("test", options.data))
    chosen = _drawn(targets, options.limit, options.seed)
    digits = images[chosen][:, None]
    return _Source(
        [f"test digit {number}" for number in chosen.tolist()],
        targets[chosen],
        [str(digit) for digit in range(10)],
        lambda numbers: normalise(digits[list(numbers)], subject.classifier.input),
    )


def _photographs(options: EmbedOptions, subject: Subject) -> _Source:
    listed = scan(options.folder, options.corrupt)
    chosen = _drawn(listed.labels, options.limit, options.seed)
    files = [listed.pictures[number].file for number in chosen.tolist()]
    return _Source(
        [str(file.relative_to(options.folder)) for file in files],
        listed.labels[chosen],
        listed.classes,
        lambda numbers: torch.stack([_read(files[number], subject) for number in numbers]),
    )


def nearest(features: torch.Tensor, count: int) -> torch.Tensor:
    """Return the numbers of each row's nearest other rows by cosine, int64 [N, count]."""
    unit = functional.normalize(features)
    alike = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return alike.topk(count).indices


def _agreement(labels: torch.Tensor, near: torch.Tensor) -> str:
    """Return a text: how often the nearest neighbour is of the same folder, if that has several."""
    several = torch.bincount(labels)[labels] > 1
    if not several.any():
        return ""
    same = (labels[near[:, 0]] == labels)[several].float().mean()
    return f"; the nearest neighbour of {same:.1%} is of their own folder"


def laid_out(
    features: torch.Tensor, method: Literal["tsne", "pca", "umap"], seed: int
) -> torch.Tensor:
    """Return features [N, features] in two dimensions, float32 [N, 2].

    t-SNE (van der Maaten & Hinton, 2008) and UMAP (McInnes et al., 2018) are given the 50 main
    components.
    """
    state = seed % 2**32
    kept = 2 if method == "pca" else min(_DIMENSIONS, *features.shape)
    components = PCA(kept, random_state=state).fit_transform(features.double().numpy())
    if method == "tsne":
        perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
        components = TSNE(perplexity=perplexity, random_state=state).fit_transform(components)
    elif method == "umap":
        import umap  # noqa: PLC0415  an extra

        near = min(15, len(features) - 1)
        # With a seed it computes in one thread, and warns where it is not told so.
        drawn = umap.UMAP(n_neighbors=near, random_state=state, n_jobs=1)
        components = drawn.fit_transform(components)
    return torch.from_numpy(components).float()


def page(found: Embedded, points: torch.Tensor, near: torch.Tensor, title: str) -> str:
    """Return the page, which asks for nothing outside itself.

    What comes from names of files and folders is data that the page shows as text.
    """
    side = found.thumbnails.shape[1]
    data = {
        "title": title,
        "classes": [
            {"name": name, "colour": colour}
            for name, colour in zip(found.classes, _colours(len(found.classes)), strict=True)
        ],
        "names": list(found.names),
        "labels": found.labels.tolist(),
        "points": [[round(v, 4) for v in point] for point in _unit(points).tolist()],
        "neighbours": near.tolist(),
        "side": side,
        "across": _ACROSS,
        "thumbnails": _sprite(found.thumbnails),
    }
    template = resources.files(__package__).joinpath("embed.html").read_text(encoding="utf-8")
    # Without "<" nothing in the data can end the element that holds it.
    as_text = json.dumps(data).replace("<", "\\u003c")
    before, after = template.split("{{data}}")
    return f"{before.replace('{{title}}', html.escape(title))}{as_text}{after}"


def _drawn(labels: torch.Tensor, limit: int, seed: int) -> torch.Tensor:
    """Return the numbers of at most so many pictures, in order, as many of each class.

    The first of each class come first, then the second ones, of an order that is drawn.
    """
    order = torch.randperm(len(labels), generator=generator(seed, 0))
    taken: Counter[int] = Counter()
    ranks = []
    for label in labels[order].tolist():
        ranks.append(taken[label])
        taken[label] += 1
    return order[torch.tensor(ranks).argsort(stable=True)[:limit]].sort().values


def _read(file: Path, subject: Subject) -> torch.Tensor:
    with Image.open(file) as picture:
        return preprocess(picture, subject.classifier.input)


def _thumbnails(subject: Subject, images: torch.Tensor) -> torch.Tensor:
    """Return pictures [N, C, H, W] as squares, uint8 [N, side, side, 3]."""
    colours = subject.shown(images).permute(0, 3, 1, 2)
    side = min(_THUMB, *colours.shape[2:])
    small = functional.interpolate(colours, (side, side), mode="bilinear", antialias=True)
    return (small.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)


def _sprite(thumbnails: torch.Tensor) -> str:
    """Return all thumbnails in rows as one JPEG, as a data URI."""
    count, side = thumbnails.shape[:2]
    grid = torch.zeros(-(-count // _ACROSS) * _ACROSS, side, side, 3, dtype=torch.uint8)
    grid[:count] = thumbnails
    rows = grid.view(-1, _ACROSS, side, side, 3).permute(0, 2, 1, 3, 4)
    kept = io.BytesIO()
    whole = rows.reshape(-1, _ACROSS * side, 3).numpy()
    Image.fromarray(whole).save(kept, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(kept.getvalue()).decode()}"


def _unit(points: torch.Tensor) -> torch.Tensor:
    """Move and scale points [N, 2] into 0 to 1, both axes alike."""
    low, high = points.amin(0), points.amax(0)
    span = (high - low).amax().clamp(min=torch.finfo(points.dtype).tiny)
    return 0.5 + (points - (low + high) / 2) / span


def _colours(count: int) -> list[str]:
    """Return as many colours, as #rrggbb: matplotlib's first ten, or the whole circle."""
    from matplotlib import colors  # noqa: PLC0415  an extra

    if count <= 10:
        return [colors.to_hex(f"C{number}") for number in range(count)]
    return [
        colors.to_hex(colorsys.hsv_to_rgb(number / count, 0.85, 0.5 + 0.2 * (number % 3)))
        for number in range(count)
    ]


def _figure(found: Embedded, points: torch.Tensor, title: str) -> "Figure":
    """Draw the thumbnails where they lie, each in a frame of its folder's colour."""
    from matplotlib import colors  # noqa: PLC0415  an extra
    from matplotlib.patches import Patch  # noqa: PLC0415  an extra

    side = found.thumbnails.shape[1]
    named = _colours(len(found.classes))
    framed = torch.empty(len(points), side + 6, side + 6, 3)
    framed[:] = torch.tensor([colors.to_rgb(named[label]) for label in found.labels])[:, None, None]
    framed[:, 3:-3, 3:-3] = found.thumbnails / 255
    # Many are drawn smaller, so that they do not hide each other.
    size = round(min(side + 6, max(18, 0.6 * _CANVAS / len(points) ** 0.5)))
    framed = functional.interpolate(framed.permute(0, 3, 1, 2), (size, size), mode="area")
    canvas = torch.ones(3, _CANVAS, _CANVAS)
    for place, thumbnail in zip(_unit(points) * (_CANVAS - size), framed, strict=True):
        left, top = place.int().tolist()
        canvas[:, top : top + size, left : left + size] = thumbnail
    figure = new_figure(9.5, 9.2, dpi=110)
    axes = figure.add_subplot()
    axes.imshow(canvas.permute(1, 2, 0).numpy(), interpolation="antialiased")
    axes.axis("off")
    axes.set_title(title, fontsize=9)
    if len(found.classes) <= _NAMED:
        handles = [
            # A name that begins with "_" or holds "$" is no special one here.
            Patch(color=colour, label=f" {shortened(name)}".replace("$", r"\$"))
            for name, colour in zip(found.classes, named, strict=True)
        ]
        figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure


def _check(method: str) -> None:
    if method != "umap":
        return
    try:
        import umap  # noqa: F401, PLC0415  an extra
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            '--method umap needs umap-learn: pip install "foveate-train[umap]"'
        ) from error


COMMAND = Command(name="embed", options=EmbedOptions, run=run)
