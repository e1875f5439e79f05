"""The page on faithfulness says what was measured."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks.faithfulness import RESULTS

from foveate_export.graph.heads import mean_of_tokens
from foveate_export.graph.heads.class_token import ORDER

PAGE = Path(__file__).parents[2] / "docs" / "export" / "faithfulness.md"
NAMES = {"Gaussian in the centre": "centre Gaussian", "noise": "random"}


TABLES = {
    "faithfulness.json": ("# Faithfulness of the maps", 6),
    "faithfulness_vit_mnist.json": ("## Class-token transformers", 8),
    "faithfulness_vit_pooled_mnist.json": ("## Pooled transformers", 9),
}
"""The results of each network, the heading above its table, and how many maps it compares."""


def methods_of(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / file).read_text(encoding="utf-8"))["methods"]
    return found


@pytest.mark.parametrize("file", TABLES)
def test_a_table_is_that_of_its_results(file: str) -> None:
    methods = methods_of(file)
    heading, many = TABLES[file]
    text = PAGE.read_text(encoding="utf-8").partition(f"{heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(
        r"^\| (.+?) " + 3 * r"\| ([\d.]+) ± ([\d.]+) " + r"\| (\d+) \|$", text, re.MULTILINE
    )
    assert len(rows) == len(methods) == many
    for name, *figures in rows:
        found = methods[NAMES.get(name, name.strip("`"))]
        pairs = [found[k] for k in ("insertion_auc", "deletion_auc", "average_drop_percent")]
        expected = [pair[key] for pair in pairs for key in ("mean", "standard_error")]
        for said, measured in zip(figures, [*expected, found["increase_percent"]], strict=True):
            decimals = len(said.partition(".")[2])
            assert float(said) == pytest.approx(measured, abs=0.501 * 10**-decimals)


@pytest.mark.parametrize(
    ("file", "first"),
    [
        ("faithfulness.json", "cam"),
        ("faithfulness_vit_mnist.json", ORDER[0]),
        ("faithfulness_vit_pooled_mnist.json", mean_of_tokens.ORDER[0]),
    ],
)
def test_the_method_that_is_offered_first_beats_the_gaussian(file: str, first: str) -> None:
    methods = methods_of(file)
    # The order is that of the bundle, whose first method is the default.
    assert next(iter(methods)) == first
    gaussian = methods["centre Gaussian"]
    assert methods[first]["insertion_auc"]["mean"] > gaussian["insertion_auc"]["mean"]
    assert methods[first]["deletion_auc"]["mean"] < gaussian["deletion_auc"]["mean"]


def test_the_first_method_of_a_class_token_is_the_best_on_digits() -> None:
    methods = methods_of("faithfulness_vit_mnist.json")
    assert max(ORDER, key=lambda name: methods[name]["insertion_auc"]["mean"]) == ORDER[0]
