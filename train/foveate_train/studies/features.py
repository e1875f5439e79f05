"""Study 3: what a convolutional network looks at, layer by layer."""

import math
from collections.abc import Mapping
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from sklearn.metrics import roc_auc_score
from torchvision.models.feature_extraction import create_feature_extractor

from foveate_train.data.memory import normalise
from foveate_train.drawing import grey, heat, saving, sheet
from foveate_train.settings import Settings
from foveate_train.strokes import bar
from foveate_train.studies import network
from foveate_train.studies.options import StudyOptions
from foveate_train.studies.pages import markdown_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "features"
LAYERS = ("layer1", "layer2", "layer3", "layer4")
SETTINGS = Settings()

_SHOWN = 10
_FIRST = 5
_SAMPLES = 5
_DIGITS = 10
_COMPARED = (4, 5)
_FOURS_AND_NINES = (4, 9)
_ANGLES = range(0, 180, 15)


class Answers(NamedTuple):
    """How a layer's channels answer to the digits.

    Attributes:
        means: float64 [channels, 10], the mean of a channel's map over the
            pictures of a digit.
        explained: float64 [channels], the share of the variance of that mean
            over all pictures that the digit explains (eta squared), 0 to 1.
    """

    means: torch.Tensor
    explained: torch.Tensor


def run(options: StudyOptions, stop: Event) -> bool:
    """Train the network, look into it, and write the page; False if interrupted."""
    trained = network.trained("foveate:convnet4", {}, SETTINGS, options, stop)
    if trained is None:
        return False
    extractor = create_feature_extractor(trained.classifier.module, list(LAYERS)).eval()
    levels = levels_of(extractor, trained)
    answers = {layer: answers_of(each, trained.test.labels) for layer, each in levels.items()}
    channel = most_selective(answers["layer4"], _FOURS_AND_NINES)
    samples = _samples(trained)
    with torch.inference_mode():
        maps = extractor(samples.images.flatten(0, 1))
        bars = extractor(normalise(torch.stack(list(map(bar, _ANGLES))), trained.test.spec))
    shown = {name: each.unflatten(0, (_DIGITS, _SAMPLES)) for name, each in maps.items()}
    network.write(
        options.folder,
        results={
            **trained.record,
            "explained_by_the_digit": {
                layer: round(float(each.explained.mean()), 4) for layer, each in answers.items()
            },
            "selective": {
                "channel": channel,
                **strength(levels["layer4"][:, channel], trained.test.labels),
                "bars": {
                    str(angle): round(float(answer.mean()), 4)
                    for angle, answer in zip(_ANGLES, bars["layer4"][:, channel], strict=True)
                },
            },
        },
        columns=["layer", "channel", "digit", "mean", "explained"],
        rows=(
            [layer, number, digit, f"{mean:.4f}", f"{answers[layer].explained[number]:.4f}"]
            for layer in LAYERS
            for number, means in enumerate(answers[layer].means)
            for digit, mean in enumerate(means)
        ),
        pictures={
            "selective.png": saving(_selective(samples.pixels, shown["layer4"][:, :, channel])),
            "first.png": saving(_first(samples.pixels, shown)),
            **{
                f"{layer}.png": saving(
                    _strongest(samples.pixels, shown[layer], strongest(answers[layer]))
                )
                for layer in LAYERS
            },
        },
        page=page,
    )
    return True


def page(results: Mapping[str, Any]) -> str:
    """Return the page, all of whose figures are those of `results.json`."""
    selective = results["selective"]
    order = sorted(range(_DIGITS), key=lambda digit: -selective["means"][digit])
    bars = sorted(selective["bars"].items(), key=lambda each: -each[1])
    shares = results["explained_by_the_digit"]
    return network.page(
        NAME,
        results,
        shares="\n".join(markdown_row([layer, f"{share:.1%}"]) for layer, share in shares.items()),
        channel=selective["channel"],
        order=", ".join(map(str, order)),
        digits=markdown_row(["digit", *range(_DIGITS)]),
        line=markdown_row(["---"] * (_DIGITS + 1)),
        means=markdown_row(["mean", *(f"{mean:.2f}" for mean in selective["means"])]),
        spread=markdown_row(["deviation", *(f"{each:.2f}" for each in selective["deviations"])]),
        distance=selective["distance"],
        probability=selective["probability"],
        angles=markdown_row(["degrees", *selective["bars"]]),
        angles_line=markdown_row(["---"] * (len(bars) + 1)),
        bars=markdown_row(["mean", *(f"{mean:.2f}" for mean in selective["bars"].values())]),
        best_angle=bars[0][0],
        least_angle=bars[-1][0],
        layers="\n\n".join(
            f"### {layer}\n\n![Ten channels of {layer} for each digit]({layer}.png)"
            for layer in LAYERS
        ),
    )


@torch.inference_mode()
def levels_of(extractor: torch.nn.Module, trained: network.Trained) -> dict[str, torch.Tensor]:
    """Return the mean of each channel's map, by layer, float64 [test pictures, channels]."""
    found: dict[str, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
    for batch in trained.test.all():
        for layer, maps in extractor(batch.images).items():
            found[layer].append(maps.mean((2, 3)).double())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def answers_of(levels: torch.Tensor, labels: torch.Tensor) -> Answers:
    """Reduce the levels [N, channels] of pictures to what the digits make of them."""
    of_digit = torch.nn.functional.one_hot(labels, _DIGITS).double()
    counts = of_digit.sum(0)
    means = of_digit.T @ levels / counts[:, None]
    overall = levels.mean(0)
    between = (counts[:, None] * (means - overall).square()).sum(0)
    total = (levels - overall).square().sum(0)
    return Answers(means.T, between / total.clamp(min=torch.finfo(torch.float64).tiny))


def strongest(answers: Answers) -> torch.Tensor:
    """Return the channels that the digits explain best, the best first."""
    return answers.explained.argsort(descending=True)[:_SHOWN]


def most_selective(answers: Answers, digits: tuple[int, ...]) -> int:
    """Return the channel that tells `digits` best from the others.

    Best is the largest gap between the least answer to one of them and the
    largest to another digit, in units of the spread over the digits.
    """
    others = [digit for digit in range(_DIGITS) if digit not in digits]
    gap = answers.means[:, list(digits)].amin(1) - answers.means[:, others].amax(1)
    spread = answers.means.std(1).clamp(min=torch.finfo(torch.float64).tiny)
    return int((gap / spread).argmax())


def strength(levels: torch.Tensor, labels: torch.Tensor) -> dict[str, object]:
    """Return how well a channel's levels [N] separate 4 and 9 from the other digits.

    `distance` is that of the two means, in units of the root of the mean of the two
    variances; `probability`, that a 4 or 9 has a higher level than another digit, both
    drawn at random (the area under the ROC curve).
    """
    own = torch.isin(labels, torch.tensor(_FOURS_AND_NINES))
    first, second = levels[own], levels[~own]
    spread = math.sqrt(float(first.var() + second.var()) / 2)
    by_digit = [levels[labels == digit] for digit in range(_DIGITS)]
    return {
        "means": [round(float(each.mean()), 4) for each in by_digit],
        "deviations": [round(float(each.std()), 4) for each in by_digit],
        "distance": round(float(first.mean() - second.mean()) / max(spread, 1e-12), 3),
        "probability": round(float(roc_auc_score(own, levels)), 4),
    }


class _Samples(NamedTuple):
    """The first test pictures of each digit: normalised, and as they are, 0 to 1."""

    images: torch.Tensor
    pixels: torch.Tensor


def _samples(trained: network.Trained) -> _Samples:
    chosen = torch.stack(
        [(trained.test.labels == digit).nonzero()[:_SAMPLES, 0] for digit in range(_DIGITS)]
    )
    pictures = trained.test.images[chosen]
    images = normalise(pictures.flatten(0, 1), trained.test.spec)
    return _Samples(images.reshape(*chosen.shape, *images.shape[1:]), pictures[:, :, 0] / 255)


def _selective(pixels: torch.Tensor, maps: torch.Tensor) -> "Figure":
    """Draw one channel's maps [10, samples, H, W] beside their pictures, on one scale."""
    high = float(maps.amax())
    rows = [
        [
            picture
            for sample in range(_SAMPLES)
            for picture in (grey(pixels[digit, sample]), heat(maps[digit, sample], 0, high))
        ]
        for digit in range(_DIGITS)
    ]
    heads = ["input", "map"] * _SAMPLES
    return sheet(rows, rows=[str(d) for d in range(_DIGITS)], columns=heads, scale=(0, high))


def _first(pixels: torch.Tensor, shown: Mapping[str, torch.Tensor]) -> "Figure":
    """Draw the first channels of each layer for two digits, on one scale for each layer."""
    rows, names = [], []
    for layer, maps in shown.items():
        chosen = maps[list(_COMPARED), 0, :_FIRST]
        high = float(chosen.amax())
        for digit, channels in zip(_COMPARED, chosen, strict=True):
            rows.append([grey(pixels[digit, 0]), *(heat(each, 0, high) for each in channels)])
            names.append(f"{layer}: {digit}")
    return sheet(rows, rows=names, columns=["input", *map(str, range(_FIRST))], cell=0.8)


def _strongest(pixels: torch.Tensor, maps: torch.Tensor, channels: torch.Tensor) -> "Figure":
    """Draw these channels of a layer's maps [10, samples, C, H, W] for one sample of each digit."""
    chosen = maps[:, 0, channels]
    highs = chosen.amax((0, 2, 3)).tolist()
    rows = [
        [
            grey(pixels[digit, 0]),
            *(heat(each, 0, high) for each, high in zip(m, highs, strict=True)),
        ]
        for digit, m in enumerate(chosen)
    ]
    heads = ["input", *map(str, channels.tolist())]
    return sheet(rows, rows=[str(digit) for digit in range(_DIGITS)], columns=heads)
