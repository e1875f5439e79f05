"""The pages of the studies that were run, against the results beside them."""

import json
from pathlib import Path

import pytest

from foveate_train.studies import STUDIES, network, normalisation, report, residual
from foveate_train.studies.results import Results

PAGES = Path(__file__).parents[2] / "docs" / "studies"
COMPARISONS = {study.name: study for study in (normalisation.STUDY, residual.STUDY)}


def test_every_study_is_described():
    index = (PAGES / "README.md").read_text()
    assert all(f"foveate train study {name}" in index for name in STUDIES)
    for page in PAGES.glob("*/README.md"):
        assert f"({page.parent.name}/README.md)" in index


@pytest.mark.parametrize(
    "results", sorted(PAGES.glob("*/results.json")), ids=lambda p: p.parent.name
)
def test_a_page_says_what_was_measured(results):
    name, page = results.parent.name, (results.parent / "README.md").read_text()
    if name in COMPARISONS:
        read = Results.model_validate_json(results.read_text())
        assert page == report.page(COMPARISONS[name], read)
        assert (results.parent / "results.csv").read_text() == report.table(COMPARISONS[name], read)
        return
    record = json.loads(results.read_text())
    assert network.described(record) in page
    for share in record.get("explained_by_the_digit", {}).values():
        assert f"| {share:.1%} |" in page
    for number, chance in enumerate(record.get("probability", {}).get("classes", [])):
        assert f"| {number} | {chance:.4f} | " in page
