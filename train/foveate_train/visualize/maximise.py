"""`foveate visualize maximise`: the pictures that filters, neurons and classes answer to most."""

from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict

import torch
from pydantic import Field

from foveate_train.ascent import Activations, ascend
from foveate_train.drawing import sheet
from foveate_train.errors import SettingsError
from foveate_train.options import As, Command
from foveate_train.recording import recorded
from foveate_train.visualize.options import VisualizeOptions
from foveate_train.visualize.subject import Subject, shortened

_UNITS = 4
_SIDE = 96


class MaximiseOptions(VisualizeOptions):
    """Draw the pictures that units answer to most, found by gradient ascent from grey.

    A filter is the sum of a channel's map, a neuron its middle, and a class its logit. A row is
    a layer, and a column a unit. maximise-ROW.npy holds [units, channels, height, width], 0 to 1.

        foveate visualize maximise package:efficientnet_lite0 --layers blocks.2 --out maximise
    """

    of: Literal["filter", "neuron", "class"] = "filter"
    """What is maximised"""
    layers: Annotated[tuple[str, ...], As("LAYER", many=True)] = ()
    """The paths of layers, for filters and neurons. Default: one of each size of maps"""
    units: Annotated[tuple[str, ...], As("UNIT", many=True)] = ()
    """Channels, from 0, or numbers or labels of classes. Default: the first"""
    l1: Annotated[float, Field(ge=0)] = 0.0
    """The penalty of a pixel's brightness, in units of what is maximised"""
    variation: Annotated[float, Field(ge=0)] = 0.0
    """The penalty of the difference between neighbouring pixels (total variation)"""
    jitter: Annotated[int, Field(ge=0)] = 0
    """Before each step the picture is moved by up to so many pixels each way"""
    frequency: bool = False
    """Climb by waves, the long ones faster, instead of by pixels"""
    compare: bool = False
    """Draw also a row without any of the four, and one with each alone"""
    steps: Annotated[int, Field(ge=1)] = 64
    """Steps of the ascent"""
    side: Annotated[int, Field(ge=8)] | None = None
    """Height and width of the pictures. Default: 96, or the network's where that is less"""


def run(options: MaximiseOptions) -> int:
    """Climb and draw; return 0.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    subject = options.subject()
    rows, kept = {}, {}
    side = _side(options, subject)
    targets = _targets(options, subject)
    for target, activations in targets.items():
        for name, regularisation in _variants(options).items():
            row = " ".join(filter(None, (target, name)))
            kept[row.replace(" ", "-")] = pictures = ascend(
                activations,
                len(options.units) or _UNITS,
                subject.classifier.input,
                **regularisation,
                side=side,
                steps=options.steps,
                seed=options.seed,
                device=subject.device,
            )
            rows[row] = list(pictures.cpu()[:, :3].permute(0, 2, 3, 1).expand(-1, -1, -1, 3))
    columns = list(options.units) or list(map(str, range(_UNITS)))
    if options.of == "class":
        columns = [subject.classifier.labels[number] for number in _classes(options, subject)]
    names = list(map(shortened, columns))
    options.keep(
        "maximise", sheet(list(rows.values()), rows=list(rows), columns=names, cell=1.2), **kept
    )
    return 0


class _Regularisation(TypedDict):
    penalty: float
    variation: float
    jitter: int
    frequency: bool


def _variants(options: MaximiseOptions) -> dict[str, _Regularisation]:
    """Return what keeps the pictures plain, by the name of the row."""
    whole: _Regularisation = {
        "penalty": options.l1,
        "variation": options.variation,
        "jitter": options.jitter,
        "frequency": options.frequency,
    }
    if not options.compare:
        return {"": whole}
    none: _Regularisation = {
        "penalty": 0,
        "variation": 0,
        "jitter": 0,
        "frequency": False,
    }
    alone: dict[str, _Regularisation] = {
        "l1": {**none, "penalty": options.l1},
        "variation": {**none, "variation": options.variation},
        "jitter": {**none, "jitter": options.jitter},
        "frequency": {**none, "frequency": options.frequency},
    }
    given = {name: each for name, each in alone.items() if each != none}
    if not given:
        raise SettingsError(
            "--compare compares nothing without --l1, --variation, --jitter or --frequency"
        )
    return {"plain": none, **given, **({"all": whole} if len(given) > 1 else {})}


def _targets(options: MaximiseOptions, subject: Subject) -> dict[str, Activations]:
    """Return what is maximised, by the name of the row."""
    if options.of == "class":
        if options.layers:
            raise SettingsError("--layers is for --of filter and --of neuron")
        classes = _classes(options, subject)
        return {"class": lambda images: subject.module(images)[:, classes]}
    found: dict[str, Activations] = {}
    for layer in subject.layers(options.layers):
        channels = _channels(options, subject, layer)
        found[layer] = _Unit(subject, layer, channels, middle=options.of == "neuron")
    return found


@dataclass(frozen=True)
class _Unit:
    """The sum of channels' maps, or their middle, as `ascend` takes it."""

    subject: Subject
    layer: str
    channels: list[int]
    middle: bool

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        with recorded(self.subject.module, [self.layer]) as seen:
            self.subject.module(images)
        maps = seen[self.layer][:, self.channels]
        height, width = maps.shape[2:]
        return maps[:, :, height // 2, width // 2] if self.middle else maps.sum((2, 3))


def _channels(options: MaximiseOptions, subject: Subject, layer: str) -> list[int]:
    count = subject.maps[layer][0]
    wanted = options.units or tuple(map(str, range(_UNITS)))
    for text in wanted:
        if not text.isdecimal() or int(text) >= count:
            raise SettingsError(f"--units {text}: {layer} has the channels 0 to {count - 1}")
    return list(map(int, wanted))


def _classes(options: MaximiseOptions, subject: Subject) -> list[int]:
    wanted = options.units or tuple(map(str, range(_UNITS)))
    return [subject.class_number(text, "--units") for text in wanted]


def _side(options: MaximiseOptions, subject: Subject) -> int | None:
    """Return the side of the pictures; None is the network's own height and width.

    Raises:
        SettingsError: the network does not take pictures of this side.
    """
    if options.side is not None:
        subject.check_side(options.side)
        return options.side
    spec = subject.classifier.input
    try:
        subject.check_side(_SIDE)
    except SettingsError:
        return None
    return _SIDE if min(spec.height, spec.width) > _SIDE else None


COMMAND = Command(name="maximise", options=MaximiseOptions, run=run)
