"""Study 4: the pictures that filters, neurons and classes answer to most."""

from collections.abc import Mapping, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import registry
from foveate_train.ascent import GREY, STEPS, Activations, ascend, normalised
from foveate_train.drawing import grey, saving, sheet
from foveate_train.recording import recorded
from foveate_train.settings import Settings
from foveate_train.studies import network
from foveate_train.studies.options import StudyOptions
from foveate_train.studies.pages import markdown_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "filters"
SMALL = Settings(epochs=2, shift=0)
BEST = Settings()
PENALTIES = (0.0, 0.1, 0.3, 0.6)
PHOTOGRAPHS = "package:efficientnet_lite0"
STAGES = ("conv_stem", "blocks.1", "blocks.2", "blocks.4")

# Below this spread of its pixels a picture shows nothing.
_FLAT = 0.01
_SHOWN = 50
_ACROSS = 10
_OF_A_STAGE = 8
_SIDE = 96
_JITTER = 4


def run(options: StudyOptions, stop: Event) -> bool:
    """Train the networks, climb their units, and write the page; False if interrupted."""
    small = network.trained("foveate:keras_cnn", {}, SMALL, options, stop)
    best = small and network.trained("foveate:convnet4", {}, BEST, options, stop)
    if small is None or best is None:
        return False
    spec = small.classifier.input
    # Before the ReLU: behind it, a neuron that is silent on grey has no slope to climb.
    layers = create_feature_extractor(small.classifier.module, ["conv2", "fc1"]).eval()
    last = create_feature_extractor(best.classifier.module, ["layer4.1"]).eval()
    units = {
        "filters": (_sums(layers, "conv2"), 50),
        "neurons": (_values(layers, "fc1"), 100),
        "best": (_sums(last, "layer4.1"), _SHOWN),
    }
    climbed = {name: ascend(*unit, spec) for name, unit in units.items()}
    photographs = registry.create(PHOTOGRAPHS)
    stages = {
        stage: _filters_of(photographs.module.eval(), stage, photographs.input) for stage in STAGES
    }
    classes = {
        name: {penalty: ascend(module, 10, spec, penalty=penalty) for penalty in PENALTIES}
        for name, module in (("small", small.classifier.module), ("best", best.classifier.module))
    }
    degrees = {
        name: unit(normalised(climbed[name], spec)).diagonal() for name, (unit, _) in units.items()
    }
    grey_ones = torch.full((1, spec.channels, spec.height, spec.width), GREY)
    on_grey = layers(normalised(grey_ones, spec))["fc1"]
    typical = _typical(units["filters"][0], small)
    network.write(
        options.folder,
        results={
            **small.record,
            "best": {key: best.record[key] for key in ("classifier", "settings", "test_accuracy")},
            "steps": STEPS,
            "degree_of_activation": {
                name: [round(v, 3) for v in each.tolist()] for name, each in degrees.items()
            },
            "degree_on_digits": [round(value, 3) for value in typical.tolist()],
            "silent_on_grey": int((on_grey <= 0).sum()),
            "flat": {name: flat(each) for name, each in {**climbed, **stages}.items()},
            "classes": {
                name: _outcomes(each, module, spec)
                for (name, each), module in zip(
                    classes.items(), (small.classifier.module, best.classifier.module), strict=True
                )
            },
        },
        columns=["unit", "number", "degree_of_activation"],
        rows=(
            [name, number, f"{degree:.3f}"]
            for name, values in degrees.items()
            for number, degree in enumerate(values.tolist())
        ),
        pictures={
            **{f"{name}.png": saving(_numbered(each)) for name, each in climbed.items()},
            **{
                f"classes-{name}.png": saving(
                    sheet(
                        [[grey(one[0]) for one in each[penalty]] for penalty in PENALTIES],
                        rows=[f"{penalty:g}" for penalty in PENALTIES],
                        columns=[str(digit) for digit in range(10)],
                    )
                )
                for name, each in classes.items()
            },
            "photographs.png": saving(
                sheet(
                    [[one.permute(1, 2, 0) for one in each] for each in stages.values()],
                    rows=STAGES,
                    columns=[str(channel) for channel in range(_OF_A_STAGE)],
                    cell=1.0,
                )
            ),
        },
        page=page,
    )
    return True


def page(results: Mapping[str, Any]) -> str:
    """Return the page, all of whose figures are those of `results.json`."""
    degrees, typical = results["degree_of_activation"]["filters"], results["degree_on_digits"]
    best = results["best"]
    flats = results["flat"]
    return network.page(
        NAME,
        results,
        steps=results["steps"],
        degree=sum(degrees) / len(degrees),
        typical=sum(typical) / len(typical),
        best=best["classifier"],
        best_epochs=network.epochs(best["settings"]["epochs"]),
        best_accuracy=best["test_accuracy"],
        filters=_flat_said(flats["filters"], 50),
        silent=results["silent_on_grey"],
        neurons=_flat_said(flats["neurons"], 100),
        best_filters=_flat_said(flats["best"], _SHOWN),
        photographs=PHOTOGRAPHS,
        of_a_stage=_OF_A_STAGE,
        stages="; ".join(
            f"`{stage}`: {_flat_said(flats[stage], _OF_A_STAGE)[:-1].lower()}" for stage in STAGES
        ),
        small_table=_table(results["classes"]["small"]),
        best_table=_table(results["classes"]["best"]),
    )


def flat(pictures: torch.Tensor) -> list[int]:
    """Return the numbers of the pictures [N, C, H, W] of one colour."""
    return (pictures.std((2, 3)).amax(1) < _FLAT).nonzero()[:, 0].tolist()


def _filters_of(module: nn.Module, stage: str, spec: InputSpec) -> torch.Tensor:
    """Climb the first filters of a stage of a network for photographs."""
    module.requires_grad_(requires_grad=False)

    def sums(images: torch.Tensor) -> torch.Tensor:
        with recorded(module, [stage]) as seen:
            module(images)
        return seen[stage].sum((2, 3))

    return ascend(sums, _OF_A_STAGE, spec, side=_SIDE, jitter=_JITTER)


def _outcomes(
    climbed: Mapping[float, torch.Tensor], module: nn.Module, spec: InputSpec
) -> dict[str, dict[str, list[float]]]:
    """Return, for each penalty, the probability of each class and the amount of ink."""
    return {
        f"{penalty:g}": {
            "probability": [
                round(v, 4)
                for v in module(normalised(pictures, spec)).softmax(1).diagonal().tolist()
            ],
            "ink": [round(v, 4) for v in pictures.mean((1, 2, 3)).tolist()],
        }
        for penalty, pictures in climbed.items()
    }


def _sums(extractor: nn.Module, layer: str) -> Activations:
    return lambda images: extractor(images)[layer].sum((2, 3))


def _values(extractor: nn.Module, layer: str) -> Activations:
    return lambda images: extractor(images)[layer]


@torch.inference_mode()
def _typical(degrees: Activations, trained: network.Trained) -> torch.Tensor:
    """Return the largest degree of activation of each filter over the test digits."""
    return torch.cat([degrees(batch.images) for batch in trained.test.all()]).amax(0)


def _numbered(pictures: torch.Tensor) -> "Figure":
    """Draw grey pictures [N, 1, H, W], ten in a row, with their numbers."""
    rows = [[grey(one[0]) for one in line] for line in torch.split(pictures, _ACROSS)]
    names = [str(number) for number in range(0, len(pictures), _ACROSS)]
    return sheet(rows, rows=names, columns=[f"+{number}" for number in range(_ACROSS)])


def _flat_said(numbers: Sequence[int], of: int) -> str:
    if not numbers:
        return f"None of the {of} pictures stayed flat."
    named = ", ".join(map(str, numbers))
    return f"Of the {of} pictures {len(numbers)} stayed flat, of one shade: {named}."


def _table(outcomes: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    heads = [f"{what}, {penalty}" for penalty in outcomes for what in ("probability", "ink")]
    lines = [markdown_row(["class", *heads]), markdown_row(["---"] * (len(heads) + 1))]
    for digit in range(10):
        cells = [
            f"{each[what][digit]:.{places}f}"
            for each in outcomes.values()
            for what, places in (("probability", 4), ("ink", 3))
        ]
        lines.append(markdown_row([digit, *cells]))
    return "\n".join(lines)
