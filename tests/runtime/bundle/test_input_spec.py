"""Input specifications that are read are right, or refused with what was meant."""

import re
from typing import Any

import pytest

from foveate_runtime.bundle.manifest import InputSpec

GOOD: dict[str, Any] = {
    "height": 8,
    "width": 8,
    "channels": 3,
    "resize": 8,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
MEAN_255, STD_255 = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def fault(name: str, given: tuple[float, ...], meant: tuple[float, ...], top: int = 255) -> str:
    return (
        f"{name} {list(given)} is on the scale from 0 to {top}; "
        f"on the scale from 0 to 1 it is {list(meant)}"
    )


MEAN_FAULT = fault("mean", MEAN_255, GOOD["mean"])
STD_FAULT = fault("std", STD_255, GOOD["std"])
HALF, ONE = (127.5,) * 3, (1.0,) * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": MEAN_255, "std": STD_255}, f"{MEAN_FAULT}; {STD_FAULT}"),
        ({"mean": MEAN_255}, MEAN_FAULT),
        ({"std": STD_255}, STD_FAULT),
        ({"std": (255.0,) * 3}, fault("std", (255.0,) * 3, ONE)),
        # Not scaled, beside a mean on the scale to 255: that of Caffe's networks.
        (
            {"mean": HALF, "std": ONE},
            f"{fault('mean', HALF, (0.5,) * 3)}; {fault('std', ONE, (0.003922,) * 3)}",
        ),
        ({"mean": (32768.0,) * 3}, fault("mean", (32768.0,) * 3, (0.5,) * 3, 65535)),
        (
            {"mean": (-0.485, 0.0, 0.0)},
            "mean [-0.485, 0.0, 0.0] is below 0; [0.485, 0.0, 0.0] was probably meant",
        ),
        (
            {"fit": "pad", "fill": (124.0, 116.0, 104.0)},
            fault("fill", (124.0, 116.0, 104.0), (0.4863, 0.4549, 0.4078)),
        ),
    ],
)
def test_what_is_off_the_scale_is_refused_with_what_was_meant(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        InputSpec(**GOOD | change)
    assert str(raised.value).count("the scale") == message.count("the scale")


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.0,) * 3, "std": ONE},
        {"mean": ONE, "std": ONE},
        {"std": (1 / 255,) * 3},
        {"std": (1 / 65535,) * 3},
        {"fit": "pad", "fill": (0.0, 1.0, 0.5)},
    ],
)
def test_what_is_on_the_scale_is_taken(change: dict[str, Any]) -> None:
    assert InputSpec(**GOOD | change).resize == 8


def test_a_specification_of_before_has_no_fit_and_crops() -> None:
    before = (
        '{"height": 64, "width": 256, "channels": 1, "resize": 256, '
        '"interpolation": "bilinear", "mean": [0], "std": [1]}'
    )
    spec = InputSpec.model_validate_json(before)
    assert (spec.fit, spec.fill, spec.resize) == ("crop", (), 256)
    with pytest.raises(ValueError, match="finite"):
        InputSpec.model_validate_json(before.replace("[0]", "[NaN]"))
