"""An export whose graph differs from torch, and how the difference is measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foveate_export.anatomy.taps import Tap
from foveate_export.errors import ParityError, RoundingError
from foveate_export.exporter import examine, export
from foveate_export.pictures import Pictures
from foveate_export.proof.comparison import SELECTING, TOLERANCES, relative_error
from foveate_export.proof.parity import measure
from foveate_export.proof.reference import answer
from foveate_export.publish.bundle import Exported
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.golden import expect
from foveate_runtime.commands.verify import verify
from foveate_train.classifier import Classifier


class OtherWhenExported(nn.Module):
    """A small network whose second layer, or output, is another one in the exported graph."""

    def __init__(self, *, layer: float = 1.0, logits: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 10)
        self.layer = layer
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        if torch.compiler.is_exporting():
            return self.fc(self.second(first * self.layer).mean((2, 3)) * self.logits)
        return self.fc(self.second(first).mean((2, 3)))


def tampered(digit_classifier, **factors: float) -> Classifier:
    torch.manual_seed(0)
    return digit_classifier(OtherWhenExported(**factors))


def test_the_same_network_is_accepted(tmp_path: Path, digits: Pictures, digit_classifier) -> None:
    exported = export(
        tampered(digit_classifier), repository=tmp_path, name="honest", pictures=digits
    )
    assert exported.path == tmp_path / "honest" / "1"


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        (
            {"layer": 1.001},
            ["cam.cam of layer second by 0.00", "features.second by 0.00", "0.0001 is accepted"],
        ),
        ({"logits": 1.05}, ["logits by 0.0", "0.001 is accepted"]),
    ],
)
def test_another_graph_is_refused_and_leaves_nothing(
    tmp_path: Path, digits: Pictures, digit_classifier, factors: dict[str, float], said: list[str]
) -> None:
    repository = tmp_path / "models"
    with pytest.raises(ParityError) as caught:
        export(
            tampered(digit_classifier, **factors),
            repository=repository,
            name="tampered",
            pictures=digits,
        )
    for words in said:
        assert words in str(caught.value)
    assert "features.first" not in str(caught.value)
    assert "32 pictures (MNIST test digits)" in str(caught.value)
    assert not repository.exists()


class RoundsInTorch(nn.Module):
    """Loses twelve bits of float32 in torch, and none in the exported graph."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.compiler.is_exporting() else (x + 4096) - 4096


def test_torch_is_not_believed_beyond_its_own_rounding(
    tmp_path: Path, digits: Pictures, digit_classifier
) -> None:
    torch.manual_seed(0)
    network = OtherWhenExported()
    network.first.append(RoundsInTorch())
    classifier = digit_classifier(network)
    exported = export(classifier, repository=tmp_path, name="rounded", pictures=digits)
    (fp32,) = exported.manifest.variants
    assert max(*fp32.parity.features.values(), *fp32.parity.cams.values()) < 1e-5
    # The golden answers are float64's as well.
    checks = verify(Bundle.open(exported.path), "fp32", "onnxruntime")
    assert max(check.error for check in checks) < 1e-5


class RoundsEverywhere(nn.Module):
    """Loses bits of float32, and more of them in the exported graph than in torch."""

    def forward(self, x: Tensor) -> Tensor:
        size = 16384 if torch.compiler.is_exporting() else 8192
        return (x + size) - size


def test_a_network_that_magnifies_rounding_is_named_as_such(
    tmp_path: Path, digits: Pictures, digit_classifier
) -> None:
    torch.manual_seed(0)
    network = OtherWhenExported()
    network.first.append(RoundsEverywhere())
    with pytest.raises(
        RoundingError, match=r"Torch in float32 is as far from float64: the network"
    ):
        export(digit_classifier(network), repository=tmp_path, name="loud", pictures=digits)
    with pytest.raises(ParityError) as caught:
        export(
            tampered(digit_classifier, layer=1.01),
            repository=tmp_path, name="wrong", pictures=digits,
        )  # fmt: skip
    assert "float64" not in str(caught.value)


def test_maps_before_a_maximum_are_judged_by_their_power(
    tmp_path: Path, digits: Pictures, digit_classifier
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(200, 10)
    )
    exported = export(
        digit_classifier(network),
        repository=tmp_path,
        name="selecting",
        pictures=digits,
        cam_layer="0",
    )
    assert exported.manifest.variant("fp32").tolerances == SELECTING
    # Two nearly equal cells may have been told apart otherwise, in few windows.
    assert max(exported.manifest.variant("fp32").parity.rms.values()) < SELECTING.cams


def test_an_output_that_is_no_number_is_refused(
    convnet4: Classifier, convnet4_export: Exported, digits: Pictures, open_runner
) -> None:
    with open_runner(convnet4_export) as runner:

        def broken(inputs, outputs):
            results = runner.run(inputs, outputs)
            results["features.layer2"][0, 0, 0, 0] = np.nan
            return results

        layers = [Tap("layer1"), Tap("layer2")]
        exact = TOLERANCES["fp32"]
        measured = measure(convnet4, None, layers, digits, run=runner.run, tolerances=exact)
        assert measured.features.keys() == {"layer1", "layer2"}
        with pytest.raises(ParityError, match=r"features\.layer2 by inf"):
            measure(convnet4, None, layers, digits, run=broken, tolerances=exact)


def test_the_manifest_tells_what_was_measured(
    lite0_export: Exported, convnet4_export: Exported, photographs: Pictures
) -> None:
    parity = lite0_export.manifest.variant("fp32").parity
    assert (parity.images, parity.data) == (min(8, len(photographs)), photographs.description)
    assert parity.top1_agreement == 1.0
    assert 0 < parity.logits_max_abs < 1e-4
    assert 0 < parity.cams["cam"] <= TOLERANCES["fp32"].cams
    assert parity.features.keys() == {f.layer for f in lite0_export.manifest.features}
    assert all(0 <= error <= TOLERANCES["fp32"].features for error in parity.features.values())
    assert convnet4_export.manifest.variant("fp32").parity.data == "MNIST test digits"


def test_the_relative_error_is_that_of_the_worst_map() -> None:
    expected = np.array([[[4.0, -8.0]], [[1.0, 2.0]]], dtype=np.float32)
    got = np.array([[[4.0, -8.4]], [[1.5, 2.0]]], dtype=np.float32)
    assert relative_error(got, expected, (1, 2)) == pytest.approx(0.25)
    assert relative_error(expected, expected, (1, 2)) == 0
    assert relative_error(got[:1], expected, (1, 2)) == float("inf")


def test_a_map_of_nothing_is_judged_by_the_others() -> None:
    expected = np.array([[[0.0, 0.0]], [[1000.0, 0.0]]], dtype=np.float32)
    got = np.array([[[0.1, 0.0]], [[1000.0, 0.0]]], dtype=np.float32)
    assert relative_error(got, expected, (1, 2)) == pytest.approx(0.1)


def test_a_map_that_a_relu_ends_is_judged_by_what_it_was_before(
    convnet4: Classifier, digits: Pictures
) -> None:
    head = examine(convnet4).head
    classes = np.arange(4)[None].repeat(len(digits.images), 0)
    answers = answer(convnet4, digits.images, head=head, classes=classes)
    whole = np.abs(answers.cams["hirescam"]).max((2, 3))
    # Behind one linear layer these are one map, but for the ReLU.
    np.testing.assert_allclose(answers.sizes["gradcam"], whole, rtol=1e-4)
    left = answers.cams["gradcam"].max((2, 3))
    assert (left < 0.5 * whole).any()
    off = answers.cams["gradcam"] + 1e-3 * whole[:, :, None, None]
    sizes = answers.sizes["gradcam"]
    assert relative_error(off, answers.cams["gradcam"], (2, 3), sizes) == pytest.approx(1e-3, 0.01)
    kept = expect(answers.outputs, answers.output_sizes)["cam.gradcam"]
    np.testing.assert_array_equal(kept.largest, sizes.reshape(-1))
