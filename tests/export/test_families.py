"""The families that people ask for first get right maps, or a sentence that says why not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.coverage import FIRST, families, measure, misplaced
from benchmarks.coverage_page import EQUAL, RESULTS
from numpy.typing import NDArray

from foveate_export.proof.comparison import SELECTING

ONE = (1, 1, 1, 1)
WIDTHS = (16, 32, 64, 64)
HEADS = (1, 2, 4, 4)
BLOCKS = {"depth": 2, "embed_dim": 48, "num_heads": 3}
WINDOWS = {"depths": (2, 1, 1, 1), "embed_dim": 16, "num_heads": HEADS}

SMALLER: Mapping[str, Mapping[str, Any]] = {
    "Swin": WINDOWS,
    "Swin V2": WINDOWS,
    "ConvNeXt": {"depths": ONE, "dims": WIDTHS},
    "ConvNeXt V2": {"depths": ONE, "dims": WIDTHS},
    "ViT, class token": BLOCKS,
    "ViT, mean of tokens": BLOCKS,
    "DeiT III": BLOCKS,
    "BEiT V2": BLOCKS,
    "EVA-02": BLOCKS,
    "MaxViT": {"depths": ONE},
    "EfficientViT": {"depths": (1, 1, 1, 1, 1)},
    "EfficientFormer": {"depths": (1, 1, 1, 2), "embed_dims": WIDTHS},
    "FastViT": {"layers": ONE, "embed_dims": WIDTHS},
    "NFNet": {"depths": ONE, "channels": (256, 256, 256, 256), "num_features": 256},
    "XCiT": {"depth": 2},
    "DaViT": {"depths": ONE, "embed_dims": WIDTHS, "num_heads": HEADS},
    "TinyViT": {"depths": ONE, "embed_dims": WIDTHS, "num_heads": HEADS},
}
"""What makes a network small: one block of a kind has the operators of all.

`python -m benchmarks.coverage` measures them in full."""

IN_FULL = json.loads(RESULTS.read_text("utf-8"))["families"]

ASKED = list(FIRST)[: list(FIRST).index("TinyViT") + 1]


@pytest.mark.parametrize("family", ASKED)
def test_a_family_has_right_maps_or_says_why_not(family: str, tmp_path: Path) -> None:
    row = measure(FIRST[family], tmp_path, SMALLER.get(family))
    assert "refused" not in row, row
    assert row["misplaced"] == []
    assert row["silent"] == []
    assert row["layers"]
    if family in SMALLER:
        # A smaller network stands for the whole one where it is explained in the same way.
        in_full = IN_FULL[family]
        assert (row["head"], row["methods"]) == (in_full["head"], in_full["methods"])
    if not row["methods"]:
        assert row["note"]
        assert "\n" not in row["note"]
        return
    limit = {"largest": EQUAL, "rms": SELECTING.cams}[row["measure"]]
    assert row["difference"] <= limit


def test_every_family_has_one_network() -> None:
    found = families()
    assert set(FIRST) < set(found)
    assert found["torchvision resnet"] == "torchvision:resnet18"
    assert found["timm levit"] == "timm:levit_128s"
    assert len(set(found.values())) == len(found)
    assert len(found) > 110


def test_a_map_on_its_side_is_misplaced() -> None:
    def run(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        maps = images.transpose(0, 3, 1, 2).astype(np.float32)
        return {
            "features.upright": maps,
            "features.mirrored": maps[..., ::-1],
            "features.nowhere": np.zeros_like(maps) + maps.mean(),
            "features.one": maps.mean((2, 3), keepdims=True),
        }

    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    names = ["upright", "mirrored", "nowhere", "one"]
    wrong = misplaced(run, images, [f"features.{name}" for name in names])
    assert wrong == ["mirrored", "nowhere"]
