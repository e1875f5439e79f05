"""The catalogue: what can be built by name, with figures that were counted beforehand.

`classifiers.json` holds a row for every network of the registry with each of
its published weights (of timm's, the default ones). `benchmarks.catalogue`
writes it; reading it needs neither torch nor the libraries.
"""

import json
from importlib import resources
from typing import TypedDict


class Row(TypedDict):
    """One classifier with one set of weights.

    Attributes:
        name: the name in the registry.
        parameters: the numbers that training adjusts.
        operations: multiply-accumulates for one picture of `input_size`.
        input_size: the height and width in pixels.
        top1: published accuracy on ImageNet's validation pictures, in percent,
            or None.
        top5: the same, the label being among the first five.
        weights: what the weights are called and where they come from;
            `random:0` where none are published.
    """

    name: str
    parameters: int
    operations: int
    input_size: int
    top1: float | None
    top5: float | None
    weights: str


def available() -> list[Row]:
    """Return every row, in the order of the registry's names."""
    text = resources.files(__name__).joinpath("classifiers.json").read_text(encoding="utf-8")
    rows: list[Row] = json.loads(text)
    return rows
