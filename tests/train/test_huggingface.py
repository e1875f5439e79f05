"""Classifiers in the layouts of Hugging Face: timm's and transformers', from a folder or a name."""

import json
import shutil
import sys

import numpy as np
import pytest
import skimage
import timm
import torch
import transformers
from PIL import Image

from foveate_train import huggingface
from foveate_train.data.preprocess import preprocess
from foveate_train.errors import ArgumentsError, MissingPackageError, WeightsError

NAMES = ["circle", "square", "triangle"]


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=3)
    timm.models.save_for_hf(
        module,
        folder,
        model_config={"label_names": NAMES, "label_descriptions": {"square": "a square"}},
        model_args={"num_classes": 3},
        safe_serialization=True,
    )
    return folder, module.eval()


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        id2label=dict(enumerate(NAMES)), embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
        layer_type="basic",
    )  # fmt: skip
    module = transformers.ResNetForImageClassification(config)
    module.save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)
    return folder, module.eval()


def test_a_folder_of_timm(timm_folder):
    folder, module = timm_folder
    loaded = huggingface.load(folder, "folder:mine")
    assert loaded.labels == ("circle", "a square", "triangle")
    assert (loaded.input.height, loaded.input.resize, loaded.input.mean[0]) == (160, 168, 0.5)
    pixels = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(loaded.module.eval()(pixels), module(pixels))


def test_a_folder_of_transformers(transformers_folder):
    folder, module = transformers_folder
    loaded = huggingface.load(folder, "folder:mine")
    assert loaded.labels == tuple(NAMES)
    assert (loaded.input.height, loaded.input.resize, loaded.input.fit) == (64, 73, "crop")
    assert loaded.assumptions["input"] == "found from what its ConvNextImageProcessor does"
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(pixels).logits, module(pixels).logits)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("ViT", {"size": {"height": 96, "width": 96}}, ("squash", 96, 96)),
        ("ViT", {"size": {"height": 64, "width": 96}}, ("squash", 64, 64)),
        ("CLIP", {}, ("crop", 224, 224)),
        ("ConvNext", {"size": {"shortest_edge": 384}}, ("squash", 384, 384)),
        ("ConvNext", {"size": {"shortest_edge": 224}}, ("crop", 224, 256)),
        ("MobileNetV2", {}, ("crop", 224, 256)),
        ("Levit", {}, ("crop", 224, 256)),
        ("DeiT", {}, ("squash", 224, 256)),
        ("MobileViT", {"size": {"shortest_edge": 288}}, ("crop", 256, 288)),
        (
            "ViT",
            {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]},
            ("squash", 224, 224),
        ),
        ("ViT", {"do_normalize": False}, ("squash", 224, 224)),
        ("ViT", {"do_normalize": False, "do_rescale": False}, ("squash", 224, 224)),
    ],
)
def test_the_input_is_what_the_image_processor_does(kind, options, expected):
    processor = getattr(transformers, f"{kind}ImageProcessor")(**options)
    spec = huggingface.input_of(processor, "x")
    assert (spec.fit, spec.height, spec.resize) == expected
    photograph = Image.fromarray(skimage.data.coffee())
    wanted = np.asarray(processor(photograph, return_tensors="pt")["pixel_values"][0])
    got = preprocess(photograph, spec).numpy()
    got = got[::-1] if kind == "MobileViT" else got
    assert np.abs((got - wanted) * np.array(spec.std)[:, None, None]).mean() < 0.01


def test_an_image_processor_like_no_specification_is_refused():
    processor = transformers.CLIPImageProcessor(do_center_crop=False)
    with pytest.raises(
        ArgumentsError, match=r"CLIPImageProcessor gives .* sizes; --input-spec says"
    ):
        huggingface.input_of(processor, "x")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("CLIP", {"do_resize": False}, "no input specification does what its CLIPImageProcessor"),
        ("ViT", {"resample": 4}, r"its ViTImageProcessor takes no picture .*; --input-spec says"),
    ],
)
def test_an_image_processor_without_a_resizing_of_ours_is_refused(kind, options, said):
    processor = getattr(transformers, f"{kind}ImageProcessor")(**options)
    with pytest.raises(ArgumentsError, match=said):
        huggingface.input_of(processor, "x")


def test_an_image_processor_that_does_more_is_refused():
    class Turned(transformers.ViTImageProcessor):
        def __call__(self, images, **more):
            return super().__call__(images.rotate(90), **more)

    with pytest.raises(ArgumentsError, match=r"does what its Turned does; --input-spec says"):
        huggingface.input_of(Turned(), "x")


def test_turned_colours_are_turned_for_the_network(transformers_folder, tmp_path):
    folder, module = transformers_folder
    shutil.copytree(folder, tmp_path / "bgr")
    size = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}
    processor = transformers.MobileViTImageProcessor(**size)
    processor.save_pretrained(tmp_path / "bgr")
    loaded = huggingface.load(tmp_path / "bgr", "x")
    photograph = Image.fromarray(skimage.data.coffee())
    with torch.no_grad():
        wanted = module(**processor(photograph, return_tensors="pt")).logits
        got = loaded.module(preprocess(photograph, loaded.input)[None]).logits
    assert torch.allclose(got, wanted, atol=0.02 * float(wanted.abs().max()))


def test_a_folder_that_lacks_something_is_refused_in_a_line(
    transformers_folder, tmp_path, monkeypatch
):
    folder, _ = transformers_folder
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    (whole / "preprocessor_config.json").unlink()
    with pytest.raises(ArgumentsError, match=r"says no input .*--input-spec says it"):
        huggingface.load(whole, "x")
    body = transformers.ResNetModel(transformers.ResNetConfig.from_pretrained(folder))
    body.save_pretrained(tmp_path / "body")
    with pytest.raises(WeightsError, match=r"no fitting values for classifier\.1\.bias, classif"):
        huggingface.load(tmp_path / "body", "x")
    (whole / "config.json").write_text(json.dumps({"nothing": 1}))
    with pytest.raises(WeightsError, match="neither an architecture of timm nor a model_type"):
        huggingface.load(whole, "x")
    (whole / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: cannot be read"):
        huggingface.load(whole, "x")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r"pip install \"foveate-train\[transformers\]\""):
        huggingface.load(folder, "x")


def test_code_in_a_folder_is_not_run(transformers_folder, tmp_path, capsys):
    folder, _ = transformers_folder
    shutil.copytree(folder, tmp_path / "code")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "code" / "config.json").write_text(json.dumps(config))
    (tmp_path / "code" / "own.py").write_text("print('this must not run')")
    with pytest.raises(WeightsError):
        huggingface.load(tmp_path / "code", "x")
    assert "must not run" not in capsys.readouterr().out


def test_a_name_of_the_hub_is_fetched_or_refused(timm_folder, monkeypatch, tmp_path):
    folder, _ = timm_folder
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"me/mine: cannot be downloaded .*give its folder"):
        huggingface.fetch("hf-hub:me/mine")
    # As the hub's client lays out what it has downloaded.
    snapshot = tmp_path / "models--me--mine" / "snapshots" / "0123456789abcdef"
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    assert huggingface.fetch("hf-hub:me/mine") == snapshot
