"""A labelled picture that cannot be read is left out and told, as one that cannot be decoded."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.evaluation.accuracy import prepared_batches
from foveate_runtime.evaluation.labelled import LabelledError, open_labelled

SPEC = InputSpec(
    height=8,
    width=8,
    channels=3,
    resize=8,
    interpolation="bilinear",
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)


def test_a_picture_that_is_gone_is_left_out_and_told(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / label / "one.png")
    labelled = open_labelled(str(tmp_path), ("cat", "dog"))
    (tmp_path / "cat" / "one.png").unlink()
    corrupt: list[str] = []
    ((images, targets),) = prepared_batches(labelled, SPEC, corrupt)
    assert images.shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(targets, [1])
    (told,) = corrupt
    assert told.endswith("one.png: No such file or directory")
    with pytest.raises(LabelledError, match="No such file or directory; --corrupt skip"):
        list(prepared_batches(labelled, SPEC))


def test_links_that_cannot_be_followed_are_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "cat" / "one.png")
    for name, target in (("loop", "loop.png"), ("long", 300 * "x"), ("nowhere", "nowhere.gif")):
        (tmp_path / "cat" / f"{name}.png").symlink_to(target)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    corrupt: list[str] = []
    labelled = open_labelled(str(tmp_path), ("cat", "dog"))
    ((images, _),) = prepared_batches(labelled, SPEC, corrupt)
    assert len(images) == 1
    assert sorted(told.rpartition(": ")[2] for told in corrupt) == [
        "File name too long",
        "No such file or directory",
        "Too many levels of symbolic links",
    ]
