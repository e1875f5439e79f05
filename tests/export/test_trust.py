"""An export that finds how far the answers can be believed."""

import json
from pathlib import Path

import pytest

from foveate_export.commands import export as command
from foveate_export.exporter import export
from foveate_export.pictures import Pictures
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.evaluation.labelled import (
    LabelledError,
    TooFewPicturesError,
    open_labelled,
)
from foveate_train.classifier import Classifier


def test_labelled_pictures_calibrate_each_variant(
    convnet4: Classifier, digits: Pictures, tmp_path: Path
) -> None:
    labelled = open_labelled("mnist", convnet4.labels, 60)
    exported = export(
        convnet4,
        repository=tmp_path,
        name="digits",
        pictures=digits,
        labelled=labelled,
        variants=("fp32", "fp16"),
    )
    manifest = Bundle.open(exported.path).manifest
    for variant in manifest.variants:
        assert variant.trust is not None
        assert (variant.trust.images, variant.trust.data) == (60, "MNIST test set")
        assert [each.coverage for each in variant.trust.sets] == [0.9, 0.95]
    first, second = (variant.trust for variant in manifest.variants)
    assert first is not None
    assert second is not None
    assert first.digest == second.digest
    assert first.outliers != second.outliers, "halves move the logits"


def test_pictures_that_suffice_for_no_coverage_calibrate_nothing_unless_asked(
    convnet4: Classifier, digits: Pictures, tmp_path: Path
) -> None:
    labelled = open_labelled("mnist", convnet4.labels, 10)
    exported = export(
        convnet4, repository=tmp_path, name="digits", pictures=digits, labelled=labelled
    )
    assert exported.manifest.variants[0].trust is None
    assert exported.manifest.variants[0].accuracy is not None
    with pytest.raises(TooFewPicturesError, match=r"at least 23 pictures; there are 10"):
        export(
            convnet4,
            repository=tmp_path,
            name="other",
            pictures=digits,
            labelled=labelled,
            coverages=(0.9, 0.95),
        )
    assert not (tmp_path / "other").exists()


def test_labels_that_are_independent_take_a_table(
    convnet4: Classifier, digits: Pictures, tmp_path: Path
) -> None:
    from foveate_export.anatomy.ending import Ending  # noqa: PLC0415 - of this test alone

    ending = Ending(scores="sigmoid", said="sigmoid, in a test")
    with pytest.raises(LabelledError, match=r"foveate calibrate takes a table, FILE\.csv"):
        export(
            convnet4,
            repository=tmp_path,
            name="digits",
            pictures=digits,
            ending=ending,
            labelled=open_labelled("mnist", convnet4.labels, 60),
            coverages=(0.9,),
        )


def test_the_command_takes_coverages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ["foveate:convnet4", "--weights", "random:3", "--name", "digits"]
    where = [*source, "--repository", str(tmp_path)]
    assert command.main([*where, "--coverage", "0.9"]) == 2
    assert "--coverage needs --data" in capsys.readouterr().err
    monkeypatch.setattr(
        "foveate_export.commands._classifier.open_labelled",
        lambda data, labels, *rest: open_labelled(data, labels, 40),
    )
    assert command.main([*where, "--data", "mnist", "--coverage", "0.5,0.9", "--json"]) == 0
    (variant,) = json.loads(capsys.readouterr().out)["variants"]
    assert [each["coverage"] for each in variant["trust"]["sets"]] == [0.5, 0.9]
