"""`foveate card` as people type it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from foveate_runtime.commands import calibrate, card, evaluate

from ..colours import LABELS, SIZE


@pytest.fixture
def measured(write_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle that was calibrated, and whose maps were measured."""
    random = np.random.default_rng(0)
    for number in range(60):
        target = number % 3
        level = random.integers(0, 120, 3)
        level[target] += 60
        pixels = np.tile(level.astype(np.uint8), (SIZE, SIZE, 1))
        folder = tmp_path / "data" / LABELS[target]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    bundle = write_bundle()
    data = ["--data", str(tmp_path / "data")]
    assert calibrate.main([str(bundle), *data, "--abstain-above", "99"]) == 0
    model = ["--repository", str(bundle.parents[1]), "--model", "colours", "--limit", "8"]
    assert evaluate.main([*model, *data, "--explanations"]) == 0
    return bundle.parent / "3"


def resolve(document: object, pointer: str) -> object:
    for key in pointer.split("/")[1:]:
        name = key.replace("~1", "/").replace("~0", "~")
        document = document[int(name)] if isinstance(document, list) else document[name]
    return document


@pytest.mark.parametrize("suffix", ["md", "html"])
def test_every_figure_of_a_card_stands_where_it_says(
    measured: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"card.{suffix}"
    assert card.main([str(measured), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    manifest = json.loads((measured / "manifest.json").read_text(encoding="utf-8"))
    pointers = re.findall(r"manifest\.json#(/[^`<]+)", text)
    assert len(pointers) > 30
    found = {pointer: resolve(manifest, pointer) for pointer in pointers}
    temperature = found["/variants/0/trust/temperatures"]
    assert f"{temperature[0]:.3g}" in text
    assert f"{found['/faithfulness/maps/cam/deletion/mean']:.3f}" in text
    assert f"{1 - found['/variants/0/trust/sets/0/lac']:.3g}" in text
    assert found["/policy/abstain_above"] == 99
    assert "Nothing is promised of a single class" in text


def test_the_hub_reads_what_stands_in_front(measured: Path, tmp_path: Path) -> None:
    out = tmp_path / "card.md"
    assert card.main([str(measured), "--out", str(out)]) == 0
    data = ModelCard.load(out).data
    assert (data.pipeline_tag, data.library_name) == ("image-classification", "foveate")


def test_a_bundle_without_calibration_says_so(
    write_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "card.html"
    assert card.main([str(write_bundle()), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "The bundle was not calibrated" in text
    assert "What the maps are worth" not in text


def test_names_of_a_bundle_cannot_break_the_card(
    write_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = write_bundle()
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["metadata"] = {"note": "<script>alert(1)</script> | `x`"}
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert card.main([str(bundle), "--out", str(tmp_path / "card.html")]) == 0
    assert "<script>" not in (tmp_path / "card.html").read_text(encoding="utf-8")
    assert card.main([str(bundle), "--out", str(tmp_path / "card.md")]) == 0
    assert r"\<script\>alert(1)\</script\> \| \`x\`" in (tmp_path / "card.md").read_text()


def test_what_cannot_be_written_is_refused_in_one_line(
    write_bundle: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = str(write_bundle())
    assert card.main([bundle, "--out", str(tmp_path / "card.pdf")]) == 2
    assert "--out must end in .md or .html" in capsys.readouterr().err
    monkeypatch.setattr(card, "find_spec", lambda _: None)
    assert card.main([bundle, "--out", str(tmp_path / "card.md")]) == 1
    assert 'pip install "foveate-runtime[card]"' in capsys.readouterr().err
    assert card.main([bundle, "--out", str(tmp_path / "card.html")]) == 0
