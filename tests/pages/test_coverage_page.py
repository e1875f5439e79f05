"""The page of coverage is what its results say."""

import json

from benchmarks.coverage_page import PAGE, RESULTS, page


def test_the_page_is_generated_from_the_results() -> None:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page(report)


def test_no_map_is_wrong() -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["families"]
    for name, row in rows.items():
        if row.get("methods"):
            assert row["difference"] <= (1e-4 if row["measure"] == "largest" else 5e-2), name
        else:
            assert row.get("note") or row.get("refused") or row.get("failed"), name


def test_what_is_missing_is_said() -> None:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    row = next(row for row in report["families"].values() if row.get("methods"))
    report["families"] = {
        "first": row | {"misplaced": ["stem"]},
        "second": row | {"methods": [], "difference": None, "note": "no maps"},
        "third": {"network": "timm:none", "refused": "too large"},
        "fourth": {"network": "timm:none", "failed": "too slow"},
        "fifth": row | {"silent": ["cam"]},
        "sixth": row | {"note": "no rollout"},
        "seventh": row | {"note": "no rollout"},
        "eighth": row | {"settled": True},
    }
    text = page(report)
    assert "- first: the test of location fails in stem" in text
    assert "- second: no maps" in text
    assert "- fifth: the maps by cam are zero, and nothing was compared" in text
    assert "- no rollout: sixth; seventh\n" in text
    assert "sixth: no rollout" not in text
    assert "- The maps of 4 lie within" in text
    assert "float64 than is accepted: eighth\n" in text
    assert "- third is not exported: too large" in text
    assert "- fourth was not measured: too slow" in text
