"""Golden answers: kept small, read back, and compared."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle, BundleError
from foveate_runtime.bundle.golden import (
    MOST_BYTES,
    Golden,
    expect,
    fitting,
    open_golden,
    refusals,
)
from foveate_runtime.bundle.manifest import Tolerances

from ...colours import relist

RNG = np.random.default_rng(0)


def test_what_is_read_is_what_was_written(colours_golden: Golden, golden_bundle: Path) -> None:
    read = open_golden(Bundle.open(golden_bundle))
    np.testing.assert_array_equal(read.images, colours_golden.images)
    np.testing.assert_array_equal(read.class_ids, colours_golden.class_ids)
    assert read.outputs.keys() == {"logits", "cam.cam", "features.planes"}
    for name, expected in colours_golden.outputs.items():
        np.testing.assert_array_equal(read.outputs[name].values, expected.values)
        np.testing.assert_array_equal(read.outputs[name].largest, expected.largest)


def test_a_bundle_may_have_none(colours: Bundle) -> None:
    assert open_golden(colours) is None


def test_a_right_graph_is_accepted_and_a_wrong_output_is_named(
    colours: Bundle, colours_golden: Golden
) -> None:
    tolerances = Tolerances(measure="largest", logits=1e-3, cams=1e-4, features=1e-4)
    with create_runner(colours) as runner:
        errors = colours_golden.errors(runner.run, "largest")
        assert not refusals(errors, tolerances)
        wrong = colours_golden.errors(_changed(runner, "cam.cam", 1.01), "largest")
    assert refusals(wrong, tolerances) == {"cam.cam": pytest.approx(0.01, rel=1e-3)}


def test_the_root_mean_square_is_over_all_maps(colours: Bundle, colours_golden: Golden) -> None:
    with create_runner(colours) as runner:
        errors = colours_golden.errors(_changed(runner, "logits", 1.2), "rms")
    assert errors["logits"] == pytest.approx(0.2, rel=1e-3)
    assert errors["features.planes"] < 1e-6


@pytest.mark.parametrize("measure", ["largest", "rms"])
def test_a_value_that_is_no_number_is_infinitely_wrong(
    colours: Bundle, colours_golden: Golden, measure: str
) -> None:
    with create_runner(colours) as runner:
        errors = colours_golden.errors(_changed(runner, "logits", np.nan), measure)
    assert errors["logits"] == float("inf")
    assert refusals(errors, Tolerances(measure=measure, logits=9, cams=9, features=9)) == {
        "logits": float("inf")
    }


@pytest.mark.parametrize(
    ("shape", "images"), [((40, 28, 28, 1), 4), ((40, 224, 224, 3), 3), ((2, 331, 331, 3), 1)]
)
def test_as_many_pictures_are_kept_as_there_is_room_for(
    shape: tuple[int, ...], images: int
) -> None:
    pictures = RNG.integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(fitting(pictures), pictures[:images])


def test_a_picture_too_large_is_kept_coarser() -> None:
    picture = RNG.integers(0, 256, (1, 1001, 999, 3), dtype=np.uint8)
    (kept,) = fitting(picture)
    assert kept.shape == (1001, 999, 3)
    side = next(n for n in range(1, 9) if (kept[n] != kept[0]).any())
    np.testing.assert_array_equal(kept[::side, ::side], picture[0, ::side, ::side])
    np.testing.assert_array_equal(kept[side - 1, side - 1], picture[0, 0, 0])


def test_the_file_stays_under_a_megabyte_whatever_the_outputs(tmp_path: Path) -> None:
    images = fitting(RNG.integers(0, 256, (4, 224, 224, 3), dtype=np.uint8))
    count = len(images)
    answers = {
        "logits": RNG.normal(size=(count, 21843)),
        "cam.cam": RNG.normal(size=(count, 4, 56, 56)),
        **{f"features.{n}": RNG.normal(size=(count, 64, 112, 112)) for n in range(20)},
    }
    golden = Golden(
        images=images,
        class_ids=np.zeros((count, 4), dtype=np.int64),
        outputs=expect({name: value.astype(np.float32) for name, value in answers.items()}),
    )
    golden.write(tmp_path / "golden.npz")
    assert 500_000 < (tmp_path / "golden.npz").stat().st_size < MOST_BYTES


def test_the_values_kept_of_a_large_output_are_spread_over_it() -> None:
    channels = np.arange(64, dtype=np.float32)[None, :, None, None]
    layer = np.broadcast_to(channels, (1, 64, 112, 112)) + np.zeros((1, 1, 112, 112), np.float32)
    others = {f"features.{n}": layer for n in range(19)}
    kept = expect({"features.layer": layer, **others})["features.layer"]
    assert kept.values.size < layer.size / 100
    assert set(kept.values[0]) == set(range(64))
    assert kept.largest == [63]


def test_a_file_that_is_none_is_refused(golden_bundle: Path) -> None:
    (golden_bundle / "golden.npz").write_bytes(b"PK no archive")
    relist(golden_bundle, "golden.npz")
    with pytest.raises(BundleError, match=r"^golden\.npz: not a file of golden answers"):
        open_golden(Bundle.open(golden_bundle))


def test_a_file_of_other_outputs_is_refused(golden_bundle: Path, colours_golden: Golden) -> None:
    other = Golden(
        images=colours_golden.images[:1],
        class_ids=colours_golden.class_ids[:1],
        outputs=colours_golden.outputs,
    )
    with (
        create_runner(Bundle.open(golden_bundle)) as runner,
        pytest.raises(BundleError, match="not of these outputs"),
    ):
        other.errors(runner.run, "largest")


def _changed(runner: Runner, output: str, factor: float) -> Callable[..., dict[str, np.ndarray]]:
    def run(inputs, outputs):
        results = runner.run(inputs, outputs)
        results[output] = results[output] * np.float32(factor)
        return results

    return run
