"""`foveate visualize arithmetic`."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate_train.commands.visualize import main
from foveate_train.visualize.arithmetic import EXAMPLES, steps

RESULTS = Path(__file__).parents[3] / "docs" / "studies" / "arithmetic" / "results.json"


def _by_hand(example):
    """What an example gives, by loops over Python's numbers."""
    picture, stride = example.picture.tolist(), example.stride
    height, width = example.window
    rows = range(0, len(picture[0]) - height + 1, stride)
    columns = range(0, len(picture[0][0]) - width + 1, stride)

    def window(channel, top, left):
        return [line[left : left + width] for line in picture[channel][top : top + height]]

    def values(*place):
        return [pixel for line in window(*place) for pixel in line]

    if example.kernels is None:
        of = {"max": max, "average": lambda each: sum(each) / len(each)}[example.pooling]
        return [
            [[of(values(channel, top, left)) for left in columns] for top in rows]
            for channel in range(len(picture))
        ]
    return [
        [
            [
                bias
                + sum(
                    weight * pixel
                    for channel, weights in enumerate(kernel)
                    for line, pixels in zip(weights, window(channel, top, left), strict=True)
                    for weight, pixel in zip(line, pixels, strict=True)
                )
                for left in columns
            ]
            for top in rows
        ]
        for kernel, bias in zip(example.kernels.tolist(), example.biases, strict=True)
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_loops_give_and_says_each_sum(name):
    example = EXAMPLES[name]
    expected = _by_hand(example)
    assert example.result().tolist() == expected
    each = steps(example)
    assert len(each) == example.result().numel()
    for step in each:
        terms, _, value = step.said.rpartition(" = ")
        assert float(value) == expected[step.output][step.row][step.column]
        if example.kernels is not None:
            # The sum as it is written comes to the value that stands behind it.
            assert eval(terms.replace("·", "*")) == float(value)  # noqa: S307


def test_the_examples_are_those_of_the_worked_examples():
    printed = "".join(json.loads(RESULTS.read_text())["outputs"])
    whole = {name: example.result().tolist() for name, example in EXAMPLES.items()}
    assert f"the layer: {[[int(v) for v in row] for row in whole['window'][0]]}\n" in printed
    assert f"the layer: {[int(each[0][0]) for each in whole['channels']]}\n" in printed
    for name, stride in (("filters", 1), ("stride", 2)):
        for number, matrix in enumerate(whole[name], 1):
            told = printed.partition(f"filter {number}, stride {stride}:\n")[2]
            lines = told.splitlines()[: len(matrix)]
            assert [list(map(float, line.split())) for line in lines] == matrix
    for number, matrix in enumerate(whole["max-pooling"], 1):
        pooled = f"filter {number}, stride 1, then max-pooling of 2 x 2: "
        assert f"{pooled}{[[int(v) for v in row] for row in matrix]}\n" in printed
    assert f"average: {whole['average-pooling'][0]}\n" in printed


@pytest.mark.parametrize("form", ["gif", "apng"])
def test_an_animation_has_a_frame_a_step(tmp_path, capsys, form):
    words = ["arithmetic", "window", "--format", form, "--seconds", "0.5"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / f"arithmetic-window.{form}") as film:
        assert film.n_frames == 4
        times, colours = [], []
        for number in range(4):
            film.seek(number)
            # The decoder sets the duration of a frame when it is loaded.
            frame = np.asarray(film.convert("RGB")).astype(int)
            times.append(film.info["duration"])
            colours.append(np.abs(frame - [0xCF, 0xE8, 0xCF]).sum(2) < 12)
        assert times == [500, 500, 500, 1500]
    # Of the outputs, more and more are done.
    done = [int(each.sum()) for each in colours]
    assert done[0] == 0
    assert done == sorted(done)
    assert done[3] > 2.5 * done[1] > 0
    with Image.open(tmp_path / "arithmetic-window.png") as strip:
        assert strip.height % 4 == 0
    assert np.load(tmp_path / "arithmetic-window-result.npy").tolist() == [[[129, 161], [225, 257]]]
    assert re.search(
        r"window: \[\[\[129\.0, 161\.0\], \[225\.0, 257\.0\]\]\]", capsys.readouterr().out
    )


def test_an_unknown_example_is_one_line(tmp_path, capsys):
    assert main(["arithmetic", "windo", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "EXAMPLE windo: there is none of this name; window" in error
    assert error.count("\n") == 1
