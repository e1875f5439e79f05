"""The catalogue's figures: against the libraries, the publications, and counted anew."""

import subprocess
import sys

import pytest
import torch
from benchmarks.catalogue import Entry, entries, outline, survey
from torch import nn
from torchvision import models

from foveate_train import registry
from foveate_train.catalogue import available
from foveate_train.counting import count

# Top-1, top-5, parameters, billions of operations, of the weights IMAGENET1K_V1.
TORCHVISION = {
    "alexnet": (56.522, 79.066, 61_100_840, 0.714),
    "vgg16": (71.592, 90.382, 138_357_544, 15.47),
    "vgg19": (72.376, 90.876, 143_667_240, 19.63),
    "googlenet": (69.778, 89.530, 6_624_904, 1.498),
    "inception_v3": (77.294, 93.450, 27_161_264, 5.713),
    "resnet18": (69.758, 89.078, 11_689_512, 1.814),
    "resnet50": (76.130, 92.862, 25_557_032, 4.089),
    "densenet121": (74.434, 91.972, 7_978_856, 2.834),
    "squeezenet1_0": (58.092, 80.420, 1_248_424, 0.819),
    "squeezenet1_1": (58.178, 80.624, 1_235_496, 0.349),
    "mobilenet_v2": (71.878, 90.286, 3_504_872, 0.301),
    "mobilenet_v3_large": (74.042, 91.340, 5_483_032, 0.217),
}
# Pixels, top-1, top-5, millions of parameters.
TIMM = {
    "mobilenetv1_100.ra4_e3600_r224_in1k": (224, 75.388, 92.310, 4.23),
    "legacy_senet154.in1k": (224, 81.320, 95.502, 115.09),
    "legacy_seresnet50.in1k": (224, 77.650, 93.732, 28.09),
    "legacy_xception.tf_in1k": (299, 79.058, 94.396, 22.86),
    "inception_resnet_v2.tf_in1k": (299, 80.434, 95.312, 55.84),
    "nasnetalarge.tf_in1k": (331, 82.638, 96.066, 88.75),
    "resnetv2_50.a1h_in1k": (224, 80.410, 95.082, 25.55),
    "tf_efficientnet_lite0.in1k": (224, 74.846, 92.180, 4.65),
}


@pytest.fixture(scope="module")
def rows():
    return available()


@pytest.fixture(scope="module")
def listed():
    return entries()


def _row(rows, name, weights=""):
    (row,) = [row for row in rows if row["name"] == name and row["weights"].startswith(weights)]
    return row


def test_the_catalogue_lists_what_the_libraries_have(rows, listed):
    assert [(row["name"], row["weights"]) for row in rows] == [
        (entry.name, entry.origin) for entry in listed
    ]
    names = {row["name"] for row in rows}
    assert names <= set(registry.names())
    # Of timm's only the classifiers with weights; of the other sources, all.
    without = {name for name in registry.names() if not name.startswith("timm:")} - names
    assert not without


def test_the_published_accuracy_is_that_of_the_libraries(rows, listed):
    assert [(row["top1"], row["top5"]) for row in rows] == [
        (entry.top1, entry.top5) for entry in listed
    ]


@pytest.mark.parametrize("network", TORCHVISION)
def test_torchvisions_published_figures_are_reproduced(network, rows):
    top1, top5, parameters, billions = TORCHVISION[network]
    row = _row(rows, f"torchvision:{network}", "IMAGENET1K_V1")
    assert (row["top1"], row["top5"], row["parameters"]) == (top1, top5, parameters)
    assert row["operations"] / 1e9 == pytest.approx(billions, rel=0.02)
    assert row["input_size"] == (299 if network == "inception_v3" else 224)


@pytest.mark.parametrize("network", TIMM)
def test_timms_published_figures_are_reproduced(network, rows):
    size, top1, top5, millions = TIMM[network]
    row = _row(rows, f"timm:{network}")
    assert (row["input_size"], row["top1"], row["top5"]) == (size, top1, top5)
    assert row["parameters"] / 1e6 == pytest.approx(millions, abs=0.0051)
    assert " from " in row["weights"]


def test_every_count_of_torchvision_is_reproduced(rows, listed):
    for row, entry in zip(rows, listed, strict=True):
        if not row["name"].startswith("torchvision:"):
            continue
        network, weights = row["name"].partition(":")[2], entry.origin.partition(" ")[0]
        meta = models.get_model_weights(network)[weights].meta
        assert row["parameters"] == meta["num_params"], network
        assert row["operations"] / 1e9 == pytest.approx(meta["_ops"], rel=0.02, abs=0.002), network


@pytest.mark.parametrize(
    ("name", "parameters", "billions"),
    [
        ("foveate:lenet5", 61_706, None),
        ("foveate:zfnet", 62_357_608, None),
        ("foveate:nin", 7_595_176, None),
        ("foveate:alexnet", 60_965_224, None),
        ("foveate:resnet18", 11_689_512, 1.814),
        # Table 4 of the paper: 569 million mult-adds.
        ("foveate:mobilenet", 4_231_976, 0.569),
    ],
)
def test_the_networks_written_here_have_their_published_counts(name, parameters, billions, rows):
    row = _row(rows, name)
    assert row["parameters"] == parameters
    assert row["weights"] == "random:0"
    if billions is not None:
        assert row["operations"] / 1e9 == pytest.approx(billions, rel=0.02)


SAMPLE = [
    *("foveate:lenet5", "foveate:convnet4", "foveate:go_policy", "foveate:inception_v2"),
    *("torchvision:vgg16", "torchvision:inception_v3", "torchvision:densenet121"),
    *("torchvision:regnet_y_400mf", "torchvision:vit_b_16", "torchvision:swin_v2_t"),
    *("timm:legacy_senet154.in1k", "timm:nasnetalarge.tf_in1k", "timm:legacy_xception.tf_in1k"),
    *("timm:resnetv2_50.a1h_in1k", "timm:convnext_tiny.in12k_ft_in1k"),
    *("package:efficientnet_lite0", "package:efficientnet_lite2"),
]


@pytest.mark.parametrize("name", SAMPLE)
def test_a_row_is_what_counting_gives_today(name, rows, listed):
    kept = [row for row in rows if row["name"] == name]
    assert kept == [survey(entry) for entry in listed if entry.name == name]


def test_a_network_of_no_catalogue_is_counted_on_request():
    row = survey(Entry("foveate:residual42", "random:0", None, None, 28, {"blocks": 1}))
    # The stem, two convolutions and the linear layer.
    assert row["operations"] == 28 * 28 * (9 * 32 + 2 * 9 * 32 * 32) + 32 * 10
    assert row["parameters"] == 9 * 32 + 2 * 9 * 32 * 32 + 3 * 2 * 32 + 32 * 10 + 10


def _held(name):
    """The numbers in a network: its parameters, and the statistics of its normalisations."""
    classifier = outline(name)
    spec = classifier.input
    counted = count(classifier.module, (spec.channels, spec.height, spec.width))
    return counted.parameters + counted.statistics, classifier.module


def test_keras_counts_the_statistics_of_normalisations_too():
    assert _held("foveate:mobilenet")[0] == 4_253_864
    assert _held("timm:legacy_xception.tf_in1k")[0] == 22_910_480
    # The Keras network has no scale in its normalisations.
    held, module = _held("timm:inception_resnet_v2.tf_in1k")
    scales = sum(m.num_features for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    assert held - scales == 55_873_736
    # The Keras network has a bias beside each normalisation.
    held, module = _held("torchvision:resnet50")
    biases = sum(m.out_channels for m in module.modules() if isinstance(m, nn.Conv2d))
    assert held + biases == 25_636_712
    assert _held("torchvision:vgg16")[0] == 138_357_544
    assert _held("torchvision:vgg19")[0] == 143_667_240


def test_attention_is_counted():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    network = nn.Sequential(nn.Flatten(2), layer)
    # Six tokens of eight: four projections, two products of all pairs, two linear layers.
    expected = 6 * 4 * 8 * 8 + 2 * 6 * 6 * 8 + 6 * 2 * 8 * 16
    assert count(network, (6, 2, 4)).operations == expected


def test_listing_needs_neither_torch_nor_the_libraries():
    code = (
        "import sys; from foveate_train.catalogue import available; assert len(available()) > 1000;"
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_outline_holds_no_values():
    assert all(tensor.is_meta for tensor in outline("torchvision:vgg16").module.parameters())
    assert outline("foveate:lenet5").module(torch.zeros(1, 1, 28, 28, device="meta")).is_meta
