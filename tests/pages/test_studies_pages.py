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


PUBLISHED = {
    "conv + sigmoid": [10.09, 9.82, *[11.35] * 13],
    "conv + ReLU": [11.35] * 15,
    "conv + BN + sigmoid": [
        *(9.48, 9.8, 10.1, 22.84, 41.51, 69.51, 41.2, 46.54),
        *(66.63, 51.88, 86.88, 77.89, 86.72, 90.74, 89.56),
    ],
    "conv + BN + ReLU": [
        *(69.62, 93.4, 90.89, 98.08, 99.15, 98.91, 99.16, 99.2),
        *(99.28, 99.29, 99.27, 99.31, 99.3, 99.3, 99.27),
    ],
}


def test_the_published_columns_of_the_first_study_are_whole():
    lines = (PAGES / "normalisation" / "README.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    heads, *table = rows[: 2 + 15]
    for title, figures in PUBLISHED.items():
        column = heads.index(title) + 1
        assert heads[column] == "published"
        assert [float(row[column]) for row in table[1:]] == figures


def test_where_nothing_is_published_nothing_is_announced():
    for page in PAGES.glob("residual*/README.md"):
        assert "ublished" not in page.read_text()


@pytest.mark.parametrize(
    "results", sorted(PAGES.glob("*/results.json")), ids=lambda p: p.parent.name
)
def test_a_page_says_what_was_measured(results):
    page = (results.parent / "README.md").read_text()
    name = json.loads(results.read_text())["study"]
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
