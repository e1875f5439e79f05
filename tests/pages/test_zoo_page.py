"""The page of the zoo is what its results say."""

import json

from benchmarks.zoo import CLASSIFIERS
from benchmarks.zoo_page import PAGE, RESULTS, page


def test_the_page_is_generated_from_the_results() -> None:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page(report)
    assert len(report["classifiers"]) >= 25
    assert report["classifiers"].keys() <= set(CLASSIFIERS)


def test_every_row_is_explained_and_agrees_with_torch() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["classifiers"]
    assert not [name for name, row in rows.items() if "refused" in row]
    for name, row in rows.items():
        assert {"gradcam", "hirescam", "layercam"} <= row["cams"].keys(), name
        assert row["cams_largest"] <= 1e-4, name
        assert row["features_largest"] <= 1e-4, name
        assert row["top1_agreement"] == 1, name


def test_what_is_missing_is_said() -> None:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    name, row = next(iter(report["classifiers"].items()))
    lacking = row | {
        "cams": {},
        "cams_largest": None,
        "note": "no maps",
        "engines": {"refused": "old"},
    }
    report["classifiers"] = {name: lacking, "foveate:other": {"refused": "too large"}}
    text = page(report)
    assert f"- `{name}`: no maps" in text
    assert f"- `{name}` has no engines: old" in text
    assert "- `foveate:other` is not exported: too large" in text
