"""The networks that Keras publishes, counted as Keras counts, and the layers of MobileNet."""

import json
from collections.abc import Mapping, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from foveate_train import registry
from foveate_train.catalogue import available
from foveate_train.counting import count, depth
from foveate_train.drawing import new_figure, saving
from foveate_train.environment import machine, versions
from foveate_train.studies import pages
from foveate_train.studies.options import StudyOptions
from foveate_train.studies.pages import markdown_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "classifiers"


class Keras(NamedTuple):
    """A row of the table of Keras Applications; the last two where they are published.

    Attributes:
        title: Keras's name.
        name: the network's name in the registry.
        size: of the file, in MB, which are units of 2**20 bytes.
        top1: accuracy on ImageNet's validation pictures, 0 to 1.
        top5: the same, of the first five.
        parameters: running means and variances included.
        depth: Keras's, which counts activations and normalisations too.
    """

    title: str
    name: str
    size: int
    top1: float
    top5: float
    parameters: int
    depth: int | None = None


# The first seven as the course shows them, with the depths of that table; the others as of
# Keras 2.3.
PUBLISHED = (
    Keras("Xception", "timm:legacy_xception.tf_in1k", 88, 0.790, 0.945, 22_910_480, 126),
    Keras("VGG16", "torchvision:vgg16", 528, 0.715, 0.901, 138_357_544, 23),
    Keras("VGG19", "torchvision:vgg19", 549, 0.727, 0.910, 143_667_240, 26),
    Keras("ResNet50", "torchvision:resnet50", 99, 0.759, 0.929, 25_636_712, 168),
    Keras("InceptionV3", "timm:inception_v3.tv_in1k", 92, 0.788, 0.944, 23_851_784, 159),
    Keras(
        "InceptionResNetV2",
        "timm:inception_resnet_v2.tf_in1k",
        size=215,
        top1=0.804,
        top5=0.953,
        parameters=55_873_736,
        depth=572,
    ),
    Keras("MobileNet", "foveate:mobilenet", 17, 0.665, 0.871, 4_253_864, 88),
    Keras("ResNet101", "torchvision:resnet101", 171, 0.764, 0.928, 44_707_176),
    Keras("ResNet152", "torchvision:resnet152", 232, 0.766, 0.931, 60_419_944),
    Keras("MobileNetV2", "torchvision:mobilenet_v2", 14, 0.713, 0.901, 3_538_984, 88),
    Keras("DenseNet121", "torchvision:densenet121", 33, 0.750, 0.923, 8_062_504, 121),
    Keras("DenseNet169", "torchvision:densenet169", 57, 0.762, 0.932, 14_307_880, 169),
    Keras("DenseNet201", "torchvision:densenet201", 80, 0.773, 0.936, 20_242_984, 201),
    Keras("NASNetLarge", "timm:nasnetalarge.tf_in1k", 343, 0.825, 0.960, 88_949_818),
)
_BIASED = ("ResNet",)
"""Keras gives the convolutions of these a bias, before the normalisation."""
_UNSCALED = ("Inception",)
"""Keras's normalisations of these have no scale."""


def run(options: StudyOptions, stop: Event) -> bool:
    """Count every network, and write the page; False if interrupted."""
    device = options.use_machine()
    catalogued = {row["name"]: row for row in reversed(available())}
    networks = []
    for row in PUBLISHED:
        if stop.is_set():
            return False
        own = catalogued[row.name]
        networks.append(
            {"keras": row._asdict(), **counted(row), "top1": own["top1"], "top5": own["top5"]}
        )
    results = {
        "study": NAME,
        "networks": networks,
        "mobilenet": mobilenet(),
        "machine": machine(device),
        "versions": versions(),
    }
    pages.write(
        options.folder,
        results=json.dumps(results, indent=1),
        page=page(json.loads(json.dumps(results))),
        pictures={"top1.png": saving(bars(networks))},
    )
    return True


def counted(row: Keras) -> dict[str, int]:
    """Count a network without values: what is its own, and what Keras counts otherwise."""
    with torch.device("meta"):
        classifier = registry.create(row.name, weights="random:0")
    module = classifier.module.eval()
    spec = classifier.input
    shape = (spec.channels, spec.height, spec.width)
    own = count(module, shape)
    biases = sum(
        layer.out_channels
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d) and layer.bias is None
    )
    scales = sum(
        layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)
    )
    return {
        "parameters": own.parameters,
        "statistics": own.statistics,
        "biases": biases if row.title.startswith(_BIASED) else 0,
        "scales": -scales if row.title.startswith(_UNSCALED) else 0,
        "depth": depth(module, shape),
    }


def mobilenet() -> list[dict[str, Any]]:
    """Return the layers of MobileNet as its paper's table 1 lists them, from the network."""
    with torch.device("meta"):
        classifier = registry.create("foveate:mobilenet", weights="random:0")
    found: list[dict[str, Any]] = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        entry: dict[str, Any] = {"layer": type(layer).__name__, "input": list(inputs[0].shape[1:])}
        if isinstance(layer, nn.Conv2d):
            depthwise = layer.groups > 1
            kernel = [*layer.kernel_size, layer.out_channels if depthwise else layer.in_channels]
            entry["layer"] = "Conv dw" if depthwise else "Conv"
            entry["stride"] = layer.stride[0]
            entry["filter"] = kernel if depthwise else [*kernel, layer.out_channels]
        if isinstance(layer, nn.Linear):
            entry["filter"] = [layer.in_features, layer.out_features]
        found.append({**entry, "output": list(output.shape[1:])})

    for layer in classifier.module.modules():
        if isinstance(layer, nn.Conv2d | nn.AdaptiveAvgPool2d | nn.Linear):
            layer.register_forward_hook(note)
    spec = classifier.input
    classifier.module.eval()(torch.zeros(1, 3, spec.height, spec.width, device="meta"))
    return found


def page(results: Mapping[str, Any]) -> str:
    """Return the page, all of whose figures are those of `results.json`."""
    networks = results["networks"]
    return pages.filled(
        NAME,
        {key: results[key] for key in ("machine", "versions")},
        table="\n".join(_row(each) for each in networks),
        counts="\n".join(_count_row(each) for each in networks),
        mobilenet="\n".join(map(_layer_row, results["mobilenet"])),
    )


def as_keras_counts(network: Mapping[str, Any]) -> int:
    """Return how many parameters Keras would count in a network of `results.json`."""
    return sum(int(network[key]) for key in ("parameters", "statistics", "biases", "scales"))


def bars(networks: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw top-1 accuracy by network: Keras's beside that of the weights taken here."""
    figure = new_figure(8, 5.5)
    axes = figure.add_subplot()
    ordered = sorted(networks, key=lambda each: float(each["keras"]["top1"]))
    places = range(len(ordered))
    for shift, label, values in (
        (0.2, "published by Keras", [100 * each["keras"]["top1"] for each in ordered]),
        (-0.2, "published with the weights taken here", [each["top1"] for each in ordered]),
    ):
        drawn = axes.barh([place + shift for place in places], values, 0.38, label=label)
        axes.bar_label(drawn, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(places, [each["keras"]["title"] for each in ordered], fontsize=9)
    axes.set_xlim(0, 92)
    axes.set_xlabel("top-1 accuracy on ImageNet, percent")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _row(network: Mapping[str, Any]) -> str:
    keras = network["keras"]
    return markdown_row(
        [
            keras["title"],
            keras["size"],
            f"{4 * as_keras_counts(network) / 2**20:.1f}",
            f"{keras['top1']:.3f}",
            f"{network['top1'] / 100:.3f}",
            f"{keras['top5']:.3f}",
            f"{network['top5'] / 100:.3f}",
            f"{keras['parameters']:,}",
            f"{as_keras_counts(network):,}",
            keras["depth"] or "",
            network["depth"],
        ]
    )


def _count_row(network: Mapping[str, Any]) -> str:
    numbers = [network[key] for key in ("parameters", "statistics", "biases", "scales")]
    apart = as_keras_counts(network) - network["keras"]["parameters"]
    cells = (f"{number:,}" if number else "" for number in numbers)
    title, name = network["keras"]["title"], network["keras"]["name"]
    return markdown_row([title, f"`{name}`", *cells, f"{as_keras_counts(network):,}", apart])


def _layer_row(layer: Mapping[str, Any]) -> str:
    stride = f" / s{layer['stride']}" if "stride" in layer else ""
    channels_last = [
        " x ".join(map(str, [*shape[1:], shape[0]])) for shape in (layer["input"], layer["output"])
    ]
    kernel = " x ".join(map(str, layer.get("filter", []))) + (
        " dw" if layer["layer"].endswith("dw") else ""
    )
    return markdown_row([f"{layer['layer']}{stride}", kernel, *channels_last])
