"""The families that people ask for first get right maps, or a sentence that says why not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.coverage import FIRST, families, measure, misplaced
from benchmarks.coverage_page import EQUAL
from numpy.typing import NDArray

from foveate_export.proof.comparison import SELECTING

ONE = (1, 1, 1, 1)
BLOCKS = {"depth": 2, "embed_dim": 48, "num_heads": 3}
WINDOWS = {"depths": (2, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 4)}

QUICK: Mapping[str, Mapping[str, Any]] = {
    "Swin": WINDOWS,
    "Swin V2": WINDOWS,
    "ConvNeXt V2": {"depths": ONE, "dims": (16, 32, 64, 64)},
    "ViT, mean of tokens": BLOCKS,
    "BEiT V2": BLOCKS,
    "RegNet": {},
    "Mixer": {},
    "PVT V2": {},
}
"""A network of each kind of layout and pooled head, and what makes it small.

Class tokens are tried in tests/export/graph/test_attention.py."""

ASKED = list(FIRST)[: list(FIRST).index("TinyViT") + 1]
"""Those that are not quick are tried in full, as `python -m benchmarks.coverage` tries all."""


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in ASKED],
)
def test_a_family_has_right_maps_or_says_why_not(family: str, tmp_path: Path) -> None:
    row = measure(FIRST[family], tmp_path, QUICK.get(family))
    assert "refused" not in row, row
    assert row["misplaced"] == []
    assert row["silent"] == []
    assert row["layers"]
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
