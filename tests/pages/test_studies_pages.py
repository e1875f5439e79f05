"""The pages of the studies that were run, against the results beside them."""

import json
import re
from pathlib import Path

import pytest
from benchmarks import chart

from foveate_train.studies import (
    STUDIES,
    arithmetic,
    classifiers,
    features,
    filters,
    normalisation,
    patches,
    report,
    residual,
)
from foveate_train.studies.results import Results

PAGES = Path(__file__).parents[2] / "docs" / "studies"
OTHERS = {each.NAME: each.page for each in (arithmetic, classifiers, features, filters, patches)}
COMPARISONS = {study.name: study for study in (normalisation.STUDY, residual.STUDY)}


def test_every_study_is_described():
    index = (PAGES / "README.md").read_text()
    assert all(f"foveate train study {name}" in index for name in STUDIES)
    for page in PAGES.glob("*/README.md"):
        assert f"({page.parent.name}/README.md)" in index


def _row(slide):
    """The row of the index whose slide begins so."""
    lines = (PAGES / "README.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith(f"| {slide}")]
    return row


def _read(name):
    return Results.model_validate_json((PAGES / name / "results.json").read_text())


def _mean(results, variant, epoch):
    accuracies = results.accuracies(variant, epoch)
    return 100 * sum(accuracies) / len(accuracies)


def test_the_index_says_what_normalisation_measured():
    results, row = _read("normalisation"), _row("Ten layers")
    variants = ("none-sigmoid", "none-relu", "batch-sigmoid", "batch-relu")
    last = ", ".join(f"{_mean(results, variant, 15):.2f}" for variant in variants)
    best = max(epoch.accuracy for run in results.runs for epoch in run.epochs)
    assert f"| {last} %; best {100 * best:.2f} % |" in row
    finals = ", ".join(f"{figures[-1]:.2f}" for figures in PUBLISHED.values())
    highest = max(max(figures) for figures in PUBLISHED.values())
    assert f"{finals} %; best {highest:.2f} % |" in row


def test_the_index_says_what_residual_measured():
    row = _row("Residual blocks")
    whole = _read("residual-full")
    with_them, without = (_mean(whole, variant, 5) for variant in ("shortcut", "plain"))
    said = f"after 5 epochs: {with_them:.2f} % with shortcuts and {without:.2f} % without"
    assert f"all digits, one seed, {said};" in row
    few = _read("residual")
    assert {len(few.accuracies(variant, 2)) for variant in ("shortcut", "plain")} == {3}
    with_them, without = (_mean(few, variant, 2) for variant in ("shortcut", "plain"))
    said = f"after 2 epochs: {with_them:.2f} and {without:.2f} %"
    assert f"{few.training_images:,} digits, three seeds, {said}" in row


def test_the_index_says_what_features_found():
    found = json.loads((PAGES / "features" / "results.json").read_text())["selective"]
    means = found["means"]
    others = max(mean for digit, mean in enumerate(means) if digit not in (4, 9))
    said = f"mean {means[4]:.2f} for 4, {means[9]:.2f} for 9, at most {others:.2f} for another"
    assert f"channel {found['channel']}: {said} digit" in _row("What a CNN looks at")


def test_the_index_counts_the_networks_of_the_chart():
    assert f"| {len(chart._CHOSEN)} networks |" in _row("Top-1 against operations")


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
    record = json.loads(results.read_text())
    name = record["study"]
    if name in COMPARISONS:
        read = Results.model_validate_json(results.read_text())
        assert page == report.page(COMPARISONS[name], read)
        assert (results.parent / "results.csv").read_text() == report.table(COMPARISONS[name], read)
    else:
        assert page == OTHERS[name](record)


def test_every_picture_of_a_page_is_there_and_small():
    for page in PAGES.glob("*/README.md"):
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            assert 0 < (page.parent / name).stat().st_size < 2**20
    for kept in PAGES.rglob("*.png"):
        assert kept.name in (kept.parent / "README.md").read_text()


def test_the_worked_examples_give_what_their_page_says():
    record = json.loads((PAGES / "arithmetic" / "results.json").read_text())
    done = arithmetic.executed(arithmetic.cells())
    assert [cell.output for cell in done if cell.is_code] == record["outputs"]
    outputs = "".join(record["outputs"])
    for said in (
        *("= 129", "= 161", "= 225", "= 257", "= 54", "= 25", "the layer: [54, 25]"),
        *("27 + 27 = 54", "18 * 3 = 54", "3*3*2 = 18", "5*5*1 = 25", "18 / 25 = 0.72"),
        *("36 * 16 = 576", "[[3, 0], [3, 1]]", "[[-1, 1], [0, 3]]"),
        *("2 layers of 3 x 3: 5 x 5", "469 iterations an epoch"),
    ):
        assert said in outputs, said
    book = json.loads((PAGES / "arithmetic" / arithmetic.NOTEBOOK).read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    printed = [
        "".join(line for each in cell["outputs"] for line in each.get("text", [])) for cell in code
    ]
    assert printed == record["outputs"]


KERAS = {
    "Xception": (88, 0.790, 0.945, 22_910_480),
    "VGG16": (528, 0.715, 0.901, 138_357_544),
    "VGG19": (549, 0.727, 0.910, 143_667_240),
    "ResNet50": (99, 0.759, 0.929, 25_636_712),
    "InceptionV3": (92, 0.788, 0.944, 23_851_784),
    "InceptionResNetV2": (215, 0.804, 0.953, 55_873_736),
    "MobileNet": (17, 0.665, 0.871, 4_253_864),
}


def test_the_table_of_keras_is_the_published_one_and_every_difference_is_explained():
    record = json.loads((PAGES / "classifiers" / "results.json").read_text())
    found = {each["keras"]["title"]: each for each in record["networks"]}
    for title, row in KERAS.items():
        keras = found[title]["keras"]
        assert tuple(keras[key] for key in ("size", "top1", "top5", "parameters")) == row
    for network in found.values():
        assert classifiers.as_keras_counts(network) == network["keras"]["parameters"]
