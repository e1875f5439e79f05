import json
import resource

import pytest
import torch

from foveate_train import checkpoint, registry
from foveate_train.errors import CheckpointError, UnknownClassifierError


@pytest.fixture(scope="module")
def convnet():
    classifier = registry.create("foveate:convnet4", weights="random:5", pool=False)
    # As training leaves it; the file's layout is contiguous.
    classifier.module.to(memory_format=torch.channels_last)
    return classifier


def _save(folder, classifier, accuracy=0.5):
    return checkpoint.save(
        folder,
        classifier,
        metrics={"test_accuracy": accuracy},
        data_digest="sha256:0123",
        seed=5,
    )


def test_a_checkpoint_comes_back_as_it_was(convnet, digits, tmp_path):
    _save(tmp_path / "deep" / "digits", convnet)
    read = checkpoint.load(tmp_path / "deep" / "digits")
    assert read.classifier.name == "foveate:convnet4"
    assert read.classifier.arguments == {"pool": False}
    assert (read.classifier.input, read.classifier.labels) == (convnet.input, convnet.labels)
    assert read.metrics == {"test_accuracy": 0.5}
    assert (read.record.data_digest, read.record.seed) == ("sha256:0123", 5)
    assert read.record.versions["torch"] == torch.__version__.split("+")[0]
    images = digits[0][:8].float() / 255
    # The same kernels are chosen for the same layout, and only then is every bit the same.
    read.classifier.module.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(convnet.module(images), read.classifier.module(images))


def test_the_folder_holds_two_files_and_no_pickle(convnet, tmp_path):
    _save(tmp_path / "digits", convnet)
    assert {path.name for path in tmp_path.iterdir()} == {"digits"}
    files = {path.name for path in (tmp_path / "digits").iterdir()}
    assert files == {"model.safetensors", "checkpoint.json"}


def test_a_checkpoint_is_replaced_as_a_whole(convnet, tmp_path):
    _save(tmp_path / "digits", convnet, accuracy=0.1)
    _save(tmp_path / "digits", convnet, accuracy=0.9)
    assert checkpoint.load(tmp_path / "digits").metrics == {"test_accuracy": 0.9}
    assert {path.name for path in tmp_path.iterdir()} == {"digits"}


def test_a_full_disk_leaves_the_old_checkpoint_whole(convnet, tmp_path):
    _save(tmp_path / "digits", convnet, accuracy=0.1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            _save(tmp_path / "digits", convnet, accuracy=0.9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load(tmp_path / "digits").metrics == {"test_accuracy": 0.1}
    assert {path.name for path in tmp_path.iterdir()} == {"digits"}


def test_a_folder_of_other_things_is_not_overwritten(convnet, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(CheckpointError, match="is no checkpoint"):
            _save(target, convnet)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def _edit(folder, **changes):
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"format": "foveate.checkpoint/9"}, r"format: .*foveate\.checkpoint/1"),
        ({"labels": []}, "labels: .*at least 1"),
        ({"input": {"height": 28}}, r"input\.width: "),
        ({"seed": "x"}, "seed: .*integer"),
        ({"sha256": "0" * 64}, "has the SHA-256 .* and checkpoint.json says 0000"),
    ],
)
def test_a_record_that_is_not_right_is_refused(changes, message, convnet, tmp_path):
    _save(tmp_path, convnet)
    _edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path)


def test_an_input_with_an_unknown_field_is_refused(convnet, tmp_path):
    record = _save(tmp_path, convnet)
    _edit(tmp_path, input=record.model_dump(mode="json")["input"] | {"gamma": 2.2})
    with pytest.raises(CheckpointError, match=r"input\.gamma: "):
        checkpoint.load(tmp_path)


def test_a_classifier_that_is_gone_is_named(convnet, tmp_path):
    _save(tmp_path, convnet)
    _edit(tmp_path, classifier="foveate:convnet3")
    with pytest.raises(UnknownClassifierError, match="foveate:convnet4"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors"])
def test_a_missing_file_is_named(name, convnet, tmp_path):
    _save(tmp_path, convnet)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: No such file"):
        checkpoint.load(tmp_path)


def test_damaged_weights_are_refused(convnet, tmp_path):
    _save(tmp_path, convnet)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        checkpoint.load(tmp_path)


def test_a_network_of_a_library_comes_back_without_a_download(tmp_path):
    classifier = registry.create("timm:resnet18", weights="random:1", num_classes=4)
    _save(tmp_path, classifier)
    read = checkpoint.load(tmp_path).classifier
    assert read.labels == ("0", "1", "2", "3")
    assert torch.equal(read.module.fc.weight, classifier.module.fc.weight)
