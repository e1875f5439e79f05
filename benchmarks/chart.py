"""The chart of classifiers: accuracy against operations, with the parameters as areas.

After Canziani et al., An analysis of deep neural network models for practical
applications, 2017. matplotlib draws it: pip install "foveate-train[plots]".

    python -m benchmarks.chart classifiers.png
"""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from foveate_train.catalogue import Row, available
from foveate_train.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Place(NamedTuple):
    """Where a label stands: this many points right of and above its circle's centre.

    The side or corner of the text that is nearest to the centre is set there;
    0 centres it on that axis.
    """

    right: float = 0
    above: float = 0


class Circle(NamedTuple):
    """One classifier of the chart.

    Attributes:
        row: its figures; `top1` must be known.
        label: its name as people say it.
        family: circles of one family share a colour and an entry in the legend.
        place: where the label stands.
    """

    row: Row
    label: str
    family: str
    place: Place = Place()


_INK = "#22303c"
_FAINT = "#7b8894"
_COLOURS = ("#7f8c99", "#4c78a8", "#e45756", "#54a24b", "#f58518", "#b279a2")
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
_POINTS_PER_MILLION = 22
"""A circle's area in square points for a million parameters."""
_SCALE = (5_000_000, 25_000_000, 100_000_000)
"""The parameters of the circles that explain the areas."""


_CAPTION = (
    "Accuracy as published with the weights: torchvision's first ones (IMAGENET1K_V1), timm's, "
    "or, for ZFNet, NIN, Inception V2 and MobileNet, their authors' and Keras's."
)

_PLAIN, _INCEPTION, _RESIDUAL = "plain stacks", "Inception", "residual"
_DENSE, _SMALL, _SEARCHED = "densely connected", "made to be small", "found by search"
# The catalogue's name, the label, the family, and where the label stands.
_CHOSEN = (
    ("torchvision:alexnet", "AlexNet", _PLAIN, Place(0, -22)),
    ("foveate:zfnet", "ZFNet", _PLAIN, Place(0, 22)),
    ("foveate:nin", "NIN", _PLAIN, Place(10, 0)),
    ("torchvision:vgg16", "VGG-16", _PLAIN, Place(0, -33)),
    ("torchvision:vgg19", "VGG-19", _PLAIN, Place(0, 33)),
    ("torchvision:googlenet", "GoogLeNet", _INCEPTION, Place(-10, 0)),
    ("foveate:inception_v2", "Inception V2", _INCEPTION, Place(0, 11)),
    ("torchvision:inception_v3", "Inception V3", _INCEPTION, Place(0, 15)),
    ("timm:inception_resnet_v2.tf_in1k", "Inception-ResNet-V2", _INCEPTION, Place(-1, 22)),
    ("timm:legacy_xception.tf_in1k", "Xception", _INCEPTION, Place(0, 14)),
    ("torchvision:resnet18", "ResNet-18", _RESIDUAL, Place(12, 0)),
    ("torchvision:resnet50", "ResNet-50", _RESIDUAL, Place(0, -15)),
    ("torchvision:resnet152", "ResNet-152", _RESIDUAL, Place(0, -23)),
    ("timm:resnetv2_50.a1h_in1k", "ResNetV2-50", _RESIDUAL, Place(0, 15)),
    ("timm:legacy_seresnet50.in1k", "SE-ResNet-50", _RESIDUAL, Place(-16, 0)),
    ("timm:legacy_senet154.in1k", "SENet-154", _RESIDUAL, Place(0, -30)),
    ("torchvision:densenet121", "DenseNet-121", _DENSE, Place(0, -10)),
    ("torchvision:squeezenet1_0", "SqueezeNet 1.0", _SMALL, Place(-5, 4)),
    ("torchvision:squeezenet1_1", "SqueezeNet 1.1", _SMALL, Place(-8, 0)),
    ("foveate:mobilenet", "MobileNet", _SMALL, Place(0, -8)),
    ("torchvision:mobilenet_v2", "MobileNetV2", _SMALL, Place(0, -8)),
    ("torchvision:mobilenet_v3_large", "MobileNetV3", _SMALL, Place(0, 8)),
    ("package:efficientnet_lite0", "EfficientNet-Lite0", _SMALL, Place(9, 0)),
    ("torchvision:efficientnet_b0", "EfficientNet-B0", _SEARCHED, Place(0, 8)),
    ("timm:nasnetalarge.tf_in1k", "NASNet-A Large", _SEARCHED, Place(0, 27)),
)


def chosen() -> list[Circle]:
    """Return the classifiers of the field's history, each with the first of its weights."""
    rows = {row["name"]: row for row in reversed(available())}
    return [Circle(rows[name], label, family, place) for name, label, family, place in _CHOSEN]


def draw(circles: Sequence[Circle], *, caption: str = "") -> "Figure":
    """Draw the chart.

    Args:
        circles: what is drawn, the largest behind.
        caption: stands below the axes, for the source of the accuracies.

    Returns:
        A figure that is attached to no window; save it with `savefig`.

    Raises:
        MissingPackageError: matplotlib is not installed.
        ValueError: a row has no published top-1 accuracy, or there are more
            families than colours.
    """
    figure = new_figure(11, 7, dpi=150)
    unknown = [circle.label for circle in circles if circle.row["top1"] is None]
    if unknown:
        raise ValueError(f"no top-1 accuracy is published for {', '.join(unknown)}")
    families = list(dict.fromkeys(circle.family for circle in circles))
    if len(families) > len(_COLOURS):
        raise ValueError(f"{len(families)} families, and colours for {len(_COLOURS)}")
    colours = dict(zip(families, _COLOURS, strict=False))

    axes = figure.add_subplot()
    for circle in sorted(circles, key=lambda circle: -circle.row["parameters"]):
        x, y = circle.row["operations"] / 1e9, cast("float", circle.row["top1"])
        colour = colours[circle.family]
        axes.scatter(x, y, _area(circle.row["parameters"]), color=colour, alpha=0.4, linewidths=0)
        axes.scatter(x, y, 7, color=colour, zorder=3)
        axes.annotate(circle.label, (x, y), zorder=4, **_label(circle.place))
    axes.set_xscale("log")
    axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.set_xticks([], minor=True)
    axes.margins(x=0.07, y=0.08)
    axes.grid(color="#e6e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=_INK)
    axes.set_xlabel("billions of multiply-accumulates for one picture", color=_INK, labelpad=8)
    axes.set_ylabel("top-1 accuracy on ImageNet, percent", color=_INK, labelpad=8)
    _add_legends(axes, colours)
    if caption:
        figure.supxlabel(caption, fontsize=8, color=_FAINT)
    return figure


def _label(place: Place) -> dict[str, Any]:
    """Return the arguments of `annotate` that set a label to its place."""
    right, above = place
    horizontal, vertical = ("right", "center", "left"), ("top", "center", "bottom")
    return {
        "xytext": place,
        "textcoords": "offset points",
        "ha": horizontal[(right > 0) - (right < 0) + 1],
        "va": vertical[(above > 0) - (above < 0) + 1],
        "fontsize": 9,
        "color": _INK,
    }


def _add_legends(axes: "Axes", colours: Mapping[str, str]) -> None:
    families = [
        axes.scatter([], [], 60, color=colour, alpha=0.6, linewidths=0, label=family)
        for family, colour in colours.items()
    ]
    first = axes.legend(
        handles=families,
        title="family",
        title_fontproperties={"weight": "bold", "size": 9},
        loc="lower right",
        frameon=False,
        labelcolor=_INK,
        alignment="left",
    )
    first.get_title().set_color(_INK)
    axes.add_artist(first)
    sizes = [
        axes.scatter([], [], _area(count), color=_FAINT, alpha=0.35, linewidths=0)
        for count in _SCALE
    ]
    second = axes.legend(
        sizes,
        [f"{count / 1e6:g} million" for count in _SCALE],
        title="parameters",
        title_fontproperties={"weight": "bold", "size": 9},
        loc="lower right",
        bbox_to_anchor=(0.79, 0),
        frameon=False,
        labelcolor=_INK,
        labelspacing=2.8,
        handletextpad=2.2,
        borderpad=1.6,
        alignment="left",
    )
    second.get_title().set_color(_INK)


def _area(parameters: float) -> float:
    return _POINTS_PER_MILLION * parameters / 1e6


def main() -> None:
    """Write the chart to the file of the first argument."""
    draw(chosen(), caption=_CAPTION).savefig(sys.argv[1])


if __name__ == "__main__":
    main()
