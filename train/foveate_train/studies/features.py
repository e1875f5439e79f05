"""Study 3: what a convolutional network looks at, layer by layer."""

from threading import Event
from typing import NamedTuple

import torch
from torchvision.models.feature_extraction import create_feature_extractor

from foveate_train.settings import Settings
from foveate_train.studies import network
from foveate_train.studies.options import StudyOptions

NAME = "features"
LAYERS = ("layer1", "layer2", "layer3", "layer4")
SETTINGS = Settings(epochs=1, shift=0)

_SHOWN = 10
_DIGITS = 10
_OPEN_FOURS_AND_NINES = (4, 9)


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
    arguments = {"pool": False}
    trained = network.trained("foveate:convnet4", arguments, SETTINGS, options, stop)
    if trained is None:
        return False
    extractor = create_feature_extractor(trained.classifier.module, list(LAYERS)).eval()
    answers = answers_of(extractor, trained)
    with torch.inference_mode():
        maps = extractor(_one_of_each(trained))
    pictures = {
        f"{layer}.png": network.sheet(
            maps[layer][:, strongest(answers[layer])].flatten(0, 1), _SHOWN
        )
        for layer in LAYERS
    }
    channel, digits = most_selective(answers["layer4"], _OPEN_FOURS_AND_NINES)
    by_layer = {layer: round(float(answers[layer].explained.mean()), 4) for layer in LAYERS}
    network.write(
        NAME,
        options.folder,
        results={
            **trained.record,
            "explained_by_the_digit": by_layer,
            "channel_of_4_and_9": channel,
            "its_means": [round(float(m), 4) for m in answers["layer4"].means[channel]],
        },
        columns=["layer", "channel", "digit", "mean", "explained"],
        rows=(
            [layer, number, digit, f"{mean:.4f}", f"{answers[layer].explained[number]:.4f}"]
            for layer in LAYERS
            for number, means in enumerate(answers[layer].means)
            for digit, mean in enumerate(means)
        ),
        pictures=pictures,
        channel=channel,
        digits=digits,
        shares="\n".join(f"| {layer} | {share:.1%} |" for layer, share in by_layer.items()),
        layers="\n\n".join(map(_section, LAYERS)),
    )
    return True


def _section(layer: str) -> str:
    return (
        f"## {layer}\n\nThe ten channels that the digits explain best, one a column; one digit a "
        "row, from 0 to 9; each map from its least value to its largest.\n\n"
        f"![Feature maps of {layer}]({layer}.png)"
    )


@torch.inference_mode()
def answers_of(extractor: torch.nn.Module, trained: network.Trained) -> dict[str, Answers]:
    """Return how every channel of every layer answers to each digit of the test set."""
    sums: dict[str, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
    for batch in trained.test.all():
        for layer, maps in extractor(batch.images).items():
            sums[layer].append(maps.mean((2, 3)).double())
    labels = trained.test.labels
    return {layer: _answers(torch.cat(parts), labels) for layer, parts in sums.items()}


def _answers(levels: torch.Tensor, labels: torch.Tensor) -> Answers:
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


def most_selective(answers: Answers, digits: tuple[int, ...]) -> tuple[int, str]:
    """Return the channel that tells `digits` best from the others, and its order of digits.

    Best is the largest gap between the least answer to one of them and the
    largest to another digit, in units of the spread over the digits.
    """
    others = [digit for digit in range(_DIGITS) if digit not in digits]
    gap = answers.means[:, list(digits)].amin(1) - answers.means[:, others].amax(1)
    spread = answers.means.std(1).clamp(min=torch.finfo(torch.float64).tiny)
    channel = int((gap / spread).argmax())
    order = answers.means[channel].argsort(descending=True).tolist()
    return channel, ", ".join(f"{digit} ({answers.means[channel, digit]:.2f})" for digit in order)


def _one_of_each(trained: network.Trained) -> torch.Tensor:
    """Return the first test picture of every digit, normalised, [10, 1, 28, 28]."""
    images, labels, _ = next(trained.test.all())
    return torch.stack([images[(labels == digit).nonzero()[0, 0]] for digit in range(_DIGITS)])
