"""`foveate calibrate` as people type it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands import calibrate

from ..colours import LABELS, SIZE

WriteBundle = Callable[..., Path]


def noisy_colours(count: int) -> tuple[list[Image.Image], list[int]]:
    """Pictures of a colour that is not always the one they are said to have."""
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, count)
    levels = random.integers(0, 120, (count, 3))
    levels[np.arange(count), targets] += 60
    pictures = [
        Image.fromarray(np.tile(level.astype(np.uint8), (SIZE, SIZE, 1))) for level in levels
    ]
    return pictures, targets.tolist()


def write_folder(root: Path, count: int) -> Path:
    for number, (picture, target) in enumerate(zip(*noisy_colours(count), strict=True)):
        (root / LABELS[target]).mkdir(parents=True, exist_ok=True)
        picture.save(root / LABELS[target] / f"{number}.png")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", 150)


def test_a_new_version_lies_beside_the_old_one_and_shares_its_files(
    write_bundle: WriteBundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_bundle()
    before = (old / "manifest.json").read_bytes()
    assert calibrate.main([str(old), "--data", str(data), "--coverage", "0.95,0.9"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{old.parent / '2'}: calibrated on 150 pictures (data)\n")
    assert "fp32: temperature " in said
    new = Bundle.open(old.parent / "2")
    trust = new.manifest.variants[0].trust
    assert trust is not None
    assert (trust.images, trust.data) == (150, "data")
    assert [each.coverage for each in trust.sets] == [0.9, 0.95]
    assert new.manifest.version == 2
    assert (old / "manifest.json").read_bytes() == before
    assert (old / "model.onnx").stat().st_ino == (new.path / "model.onnx").stat().st_ino
    assert sorted(path.name for path in old.parent.iterdir()) == ["1", "2"]


def test_the_coverages_that_the_pictures_suffice_for_are_the_default(
    write_bundle: WriteBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "few", 60)
    assert calibrate.main([str(write_bundle()), "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["coverage"] for each in found["trust"]["fp32"]["sets"]] == [0.9, 0.95]
    assert found["version"] == 2


def test_too_few_pictures_are_refused_with_the_number_needed(
    write_bundle: WriteBundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle()
    arguments = [str(bundle), "--data", str(data)]
    assert calibrate.main([*arguments, "--coverage", "0.9,0.999"]) == 2
    assert (
        "a coverage of 0.999 takes at least 1248 pictures; there are 150" in capsys.readouterr().err
    )
    assert calibrate.main([*arguments, "--limit", "5"]) == 2
    assert "a coverage of 0.9 takes at least 11 pictures; there are 5" in capsys.readouterr().err
    assert [path.name for path in bundle.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("coverage", ["0", "1", "1.5", "-0.1", "nan", "0.9,2", "much", ""])
def test_what_is_no_coverage_is_refused(
    write_bundle: WriteBundle, data: Path, capsys: pytest.CaptureFixture[str], coverage: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        calibrate.main([str(write_bundle()), "--data", str(data), f"--coverage={coverage}"])
    assert caught.value.code == 2
    assert "--coverage" in capsys.readouterr().err


def test_corrupt_pictures_do_not_count(
    write_bundle: WriteBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "few", 11)
    (data / "red" / "half.png").write_bytes(b"\x89PNG")
    arguments = [str(write_bundle()), "--data", str(data)]
    assert calibrate.main(arguments) == 1
    assert "half.png" in capsys.readouterr().err
    assert calibrate.main([*arguments, "--corrupt", "skip"]) == 0
    assert "calibrated on 11 pictures" in capsys.readouterr().out
    next(data.glob("*/10.png")).write_bytes(b"\x89PNG")
    assert calibrate.main([*arguments, "--corrupt", "skip"]) == 2
    assert "takes at least 11 pictures; there are 10" in capsys.readouterr().err


def test_the_policy_is_kept_and_checked(
    write_bundle: WriteBundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_bundle()
    arguments = [str(old), "--data", str(data)]
    policy = ["--abstain-above", "99", "--abstain-set-larger-than", "2"]
    assert calibrate.main([*arguments, *policy]) == 0
    kept = Bundle.open(old.parent / "2").manifest.policy
    assert (kept.abstain_above, kept.abstain_set_larger_than) == (99, 2)
    assert calibrate.main([*arguments, "--abstain-set-larger-than", "-1"]) == 2
    assert "--abstain-set-larger-than -1 is below 0" in capsys.readouterr().err


def test_independent_labels_take_a_table(
    write_bundle: WriteBundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_bundle(scores="sigmoid")
    assert calibrate.main([str(old), "--data", str(data)]) == 1
    assert "takes a table, FILE.csv" in capsys.readouterr().err
    rows = ["picture,labels"]
    for number, (_, target) in enumerate(zip(*noisy_colours(150), strict=True)):
        also = f";{LABELS[(target + 1) % 3]}" if number % 3 == 0 else ""
        rows.append(f"data/{LABELS[target]}/{number}.png,{LABELS[target]}{also}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert calibrate.main([str(old), "--data", str(table)]) == 0
    trust = Bundle.open(old.parent / "2").manifest.variants[0].trust
    assert trust is not None
    assert len(trust.temperatures) == 3
    assert all(each.raps is None for each in trust.sets)
    assert calibrate.main([str(write_bundle(name="soft")), "--data", str(table)]) == 1
    assert "classes exclude each other" in capsys.readouterr().err


def test_scores_that_are_logits_cannot_be_calibrated(
    write_bundle: WriteBundle, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate.main([str(write_bundle(scores="none")), "--data", str(data)]) == 1
    assert "the model's scores are its logits" in capsys.readouterr().err


def test_a_bundle_outside_a_repository_is_refused(
    write_bundle: WriteBundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loose = tmp_path / "loose"
    write_bundle().rename(loose)
    assert calibrate.main([str(loose), "--data", str(data)]) == 2
    assert "a bundle lies in <repository>/colours/<version>" in capsys.readouterr().err


def test_neither_torch_nor_grpc_is_imported() -> None:
    program = (
        "import sys, foveate_runtime.commands.calibrate\n"
        "print([name for name in ('torch', 'grpc', 'onnxruntime') if name in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        env=os.environ,
    ).stdout
    assert printed == "[]\n"
