"""The families that people ask for first get right maps, or a sentence that says why not."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.coverage import FIRST, families, measure, misplaced
from benchmarks.coverage_page import EQUAL
from numpy.typing import NDArray

from foveate_export.proof.comparison import SELECTING

QUICK = ("ConvNeXt V2", "ViT, mean of tokens", "Swin", "PoolFormer", "RegNet", "MobileNetV4")
"""A network of each kind of layout and head; `python -m benchmarks.coverage` tries all."""


@pytest.mark.parametrize("family", QUICK)
def test_a_family_has_right_maps_or_says_why_not(family: str, tmp_path: Path) -> None:
    row = measure(FIRST[family], tmp_path)
    assert "refused" not in row, row
    assert row["misplaced"] == []
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
    assert found["timm ghostnet"] == "timm:ghostnet_100"
    assert len(found) > 120


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
