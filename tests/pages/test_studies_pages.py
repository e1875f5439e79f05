"""The pages of the studies that were run, against the results beside them."""

import json
import re
from pathlib import Path

import pytest
from benchmarks import chart

from foveate_train import registry
from foveate_train.studies import (
    STUDIES,
    arithmetic,
    classifiers,
    features,
    filters,
    go,
    normalisation,
    patches,
    report,
    residual,
    speech,
)
from foveate_train.studies.results import Results

PAGES = Path(__file__).parents[2] / "docs" / "studies"
OTHERS = {
    each.NAME: each.page
    for each in (arithmetic, classifiers, features, filters, go, patches, speech)
}
COMPARISONS = {study.name: study for study in (normalisation.STUDY, residual.STUDY)}


def test_every_study_is_described():
    index = (PAGES / "README.md").read_text()
    assert all(f"foveate train study {name}" in index for name in STUDIES)
    for page in PAGES.glob("*/README.md"):
        assert f"({page.parent.name}/README.md)" in index


def _rows():
    """The slide, what it says and what was found, of each row of the index."""
    lines = (PAGES / "README.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {slide: (says, found) for slide, says, found, _ in rows[1:]}


def _read(name):
    return Results.model_validate_json((PAGES / name / "results.json").read_text())


def _record(name):
    return json.loads((PAGES / name / "results.json").read_text())


def _mean(results, variant, epoch):
    accuracies = results.accuracies(variant, epoch)
    return 100 * sum(accuracies) / len(accuracies)


def _normalisation():
    results = _read("normalisation")
    variants = ("none-sigmoid", "none-relu", "batch-sigmoid", "batch-relu")
    last = ", ".join(f"{_mean(results, variant, 15):.2f}" for variant in variants)
    best = max(epoch.accuracy for run in results.runs for epoch in run.epochs)
    finals = ", ".join(f"{figures[-1]:.2f}" for figures in PUBLISHED.values())
    highest = max(max(figures) for figures in PUBLISHED.values())
    epochs = len(PUBLISHED["conv + ReLU"])
    return (
        f"test accuracy after {epochs} epochs: {finals} %; best {highest:.2f} %",
        f"{last} %; best {100 * best:.2f} %",
    )


def _residual():
    whole, few = _read("residual-full"), _read("residual")
    digits = f"{few.training_images:,} digits"
    parts = [_mean(whole, variant, 5) for variant in ("shortcut", "plain")]
    parts += [_mean(few, variant, 2) for variant in ("shortcut", "plain")]
    assert {len(few.accuracies(variant, 2)) for variant in ("shortcut", "plain")} == {3}
    assert {len(whole.accuracies(variant, 5)) for variant in ("shortcut", "plain")} == {1}
    return (
        "no figures; the network without shortcuts fails or lags",
        (
            f"all digits, one seed, after 5 epochs: {parts[0]:.2f} % with shortcuts and "
            f"{parts[1]:.2f} % without; {digits}, three seeds, after 2 epochs: "
            f"{parts[2]:.2f} and {parts[3]:.2f} %"
        ),
    )


def _features():
    found = _record("features")["selective"]
    means, bars = found["means"], found["bars"]
    others = max(mean for digit, mean in enumerate(means) if digit not in (4, 9))
    assert 75 <= int(max(bars, key=bars.get)) <= 105
    return (
        "one channel of the last layer answers to vertical strokes, so only to 4 and 9",
        (
            f"channel {found['channel']}: mean {means[4]:.2f} for 4, {means[9]:.2f} for 9, at most "
            f"{others:.2f} for another digit; its best bar is near upright"
        ),
    )


def _filters():
    *penalties, last = _record("filters")["classes"]["small"]
    return (
        "pictures by gradient ascent, classes with an L1 penalty",
        (
            f"the same, with penalties of {', '.join(penalties)} and {last}, and the filters of "
            "EfficientNet-Lite0"
        ),
    )


def _patches():
    layers = [layer[5:] for layer in _record("patches")["patches"] if layer.startswith("layer")]
    return (
        "the strongest patches of a channel and their deconvolution",
        "the same with guided gradients, for digits and for EfficientNet-Lite0: corners, arcs and "
        "closed loops in layer {}, whole digits in layer {}".format(*layers),
    )


def _arithmetic():
    says = "129, 161, 225, 257; 54 and 25; 27 + 27; 18 against 25 weights; 0.25"
    outputs = "".join(_record("arithmetic")["outputs"])
    assert all(re.search(rf"(?<![\d.]){n}(?!\d)", outputs) for n in re.findall(r"[\d.]+", says))
    return says, "the same, by the layers themselves"


def _classifiers():
    networks = _record("classifiers")["networks"]
    assert all(classifiers.as_keras_counts(n) == n["keras"]["parameters"] for n in networks)
    return (
        "size, top-1, top-5, parameters, depth",
        f"{len(networks)} networks: parameters equal to the last one, each difference explained",
    )


def _go():
    policy = registry.create("foveate:go_policy", weights="random:0", filters=32)
    found = _record("go")
    return (
        f"AlphaGo's policy network, {policy.input.channels} planes to {len(policy.labels)} points",
        (
            f"{found['test_accuracy']:.1%} of the next moves of {found['test_games']} games, where "
            f"chance is {found['chance']:.2%} and at most {found['bound']:.1%} can be foretold"
        ),
    )


def _speech():
    found = _record("speech")
    sounds = found["shares"]["six"]
    hiss = sounds[0][0] + sounds[-2][0]
    return (
        "a spectrogram is a picture",
        (
            f"{found['test_accuracy']:.1%} of {found['test_images']} spoken digits by speakers not "
            f"trained on; {hiss:.0%} of the map of six lies on its two s"
        ),
    )


INDEX = {
    "Ten layers": _normalisation,
    "Residual blocks": _residual,
    "What a CNN looks at": _features,
    "Filters, neurons": _filters,
    "Zeiler and Fergus": _patches,
    "Convolution, pooling": _arithmetic,
    "The networks of Keras": _classifiers,
    "Go:": _go,
    "Sounds as pictures": _speech,
    "Top-1 against operations": lambda: (
        "the chart of Canziani et al.",
        f"{len(chart._CHOSEN)} networks",
    ),
}


def test_every_row_of_the_index_is_compared_with_results():
    rows = _rows()
    assert len(rows) == len(INDEX)
    for begins in INDEX:
        assert len([slide for slide in rows if slide.startswith(begins)]) == 1


@pytest.mark.parametrize("begins", INDEX)
def test_the_index_says_what_was_measured(begins):
    (row,) = [row for slide, row in _rows().items() if slide.startswith(begins)]
    assert row == INDEX[begins]()


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
    "Xception": (88, 0.790, 0.945, 22_910_480, 126),
    "VGG16": (528, 0.715, 0.901, 138_357_544, 23),
    "VGG19": (549, 0.727, 0.910, 143_667_240, 26),
    "ResNet50": (99, 0.759, 0.929, 25_636_712, 168),
    "InceptionV3": (92, 0.788, 0.944, 23_851_784, 159),
    "InceptionResNetV2": (215, 0.804, 0.953, 55_873_736, 572),
    "MobileNet": (17, 0.665, 0.871, 4_253_864, 88),
}


def test_the_table_of_keras_is_the_published_one_and_every_difference_is_explained():
    record = json.loads((PAGES / "classifiers" / "results.json").read_text())
    found = {each["keras"]["title"]: each for each in record["networks"]}
    for title, row in KERAS.items():
        keras = found[title]["keras"]
        assert tuple(keras[key] for key in ("size", "top1", "top5", "parameters", "depth")) == row
    for network in found.values():
        assert classifiers.as_keras_counts(network) == network["keras"]["parameters"]
