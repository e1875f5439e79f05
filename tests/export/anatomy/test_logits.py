"""Networks in torch by what stands at their end: served are the scores that they give."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate_client import Client, Prepared
from foveate_export.anatomy.ending import probes
from foveate_export.anatomy.logits import as_logits
from foveate_export.anatomy.pixels import normalise
from foveate_export.commands import export as export_command
from foveate_export.errors import ExportError, UsageError
from foveate_export.exporter import examine, export
from foveate_export.pictures import Pictures, shipped
from foveate_export.proof.reference import in_float64
from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.bundle.scores import score
from foveate_train.classifier import Classifier

SPEC = InputSpec(
    height=32,
    width=32,
    channels=3,
    resize=36,
    interpolation="bilinear",
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.25),
)
LABELS = ("coffee", "cat", "rocket", "cup", "other")
MAPS = ["cam", "gradcam", "hirescam", "layercam"]


class Small(nn.Module):
    """Convolution, ReLU, mean, a linear layer, and `end` of what that returns."""

    def __init__(self, end: Callable[[Tensor], Tensor] | nn.Module, outputs: int = 5) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.ReLU())
        self.fc = nn.Linear(8, outputs)
        with torch.no_grad():
            self.fc.weight *= 12
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.fc(self.body(x).mean((2, 3))))


class Attentive(nn.Module):
    """Softmax and sigmoid inside, one module of each used twice, and one of them at the end."""

    def __init__(self, end: str) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.fc = nn.Linear(8, 5)
        self.softmax, self.sigmoid = nn.Softmax(-1), nn.Sigmoid()
        self.last = end

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        weights = self.softmax(tokens @ tokens.transpose(1, 2))
        gates = self.sigmoid(tokens.mean(1, keepdim=True))
        z = 5 * self.fc((weights @ tokens * gates).mean(1))
        return z if self.last == "linear" else getattr(self, self.last)(z)


def classifier(module: nn.Module, labels: tuple[str, ...] = LABELS) -> Classifier:
    return Classifier(
        name="test:net", arguments={}, module=module.eval(), input=SPEC, labels=labels
    )


@pytest.fixture(scope="module")
def photographs() -> Pictures:
    return shipped(SPEC)


def run(module: nn.Module, pictures: Pictures) -> np.ndarray:
    with torch.no_grad():
        return module(normalise(pictures.images, SPEC)).reshape(len(pictures), -1).numpy()


def found(given: Classifier, pictures: Pictures, wanted: str | None = None):
    """Return the classifier of logits, the ending, and the scores of the pictures."""
    kept = copy.deepcopy(given.module)
    made, ending = as_logits(given, probes(pictures, SPEC), wanted)
    np.testing.assert_array_equal(
        run(given.module, pictures), run(kept, pictures), "the network given is left as it was"
    )
    logits = run(made.module, pictures)
    assert logits.shape == (len(pictures), len(made.labels))
    np.testing.assert_allclose(
        in_float64(made).module(normalise(pictures.images, SPEC, torch.float64)).detach(),
        logits,
        rtol=1e-3,
        atol=1e-4,
    )
    return made, ending, score(logits, ending.scores)


TAKEN_OFF = {
    "softmax as a module": nn.Softmax(1),
    "softmax as a function": lambda z: functional.softmax(z, dim=1),
    "softmax by keyword": lambda z: functional.softmax(input=z, dim=-1),
    "softmax in another type": lambda z: functional.softmax(z, 1, dtype=torch.float64).float(),
    "softmax as a method": lambda z: z.softmax(1),
    "softmax of torch": lambda z: torch.softmax(z, 1),
    "softmax in another shape": lambda z: z[:, :, None, None].softmax(1).flatten(1),
    "softmax, dropout": nn.Sequential(nn.Softmax(1), nn.Dropout(0.5), nn.Identity()),
    "softmax, clamp": lambda z: z.softmax(1).clamp(1e-7, 1 - 1e-7),
    "sigmoid, clamp": lambda z: torch.clamp(torch.sigmoid(z), min=1e-7, max=1 - 1e-7),
    "log-softmax as a module": nn.LogSoftmax(1),
    "logarithm of a softmax": lambda z: z.softmax(1).log(),
    "logarithm of a sigmoid": lambda z: torch.log(torch.sigmoid(z)),
    "log-softmax as a function": lambda z: functional.log_softmax(z, dim=1),
    "sigmoid as a module": nn.Sigmoid(),
    "sigmoid as a function": functional.sigmoid,
    "sigmoid as a method": lambda z: z.sigmoid(),
    "sigmoid in place": lambda z: z.sigmoid_(),
    "sigmoid of torch": torch.sigmoid,
    "sigmoid called expit": torch.special.expit,
    "log-sigmoid as a module": nn.LogSigmoid(),
    "log-sigmoid as a function": functional.logsigmoid,
}


@pytest.mark.parametrize("name", TAKEN_OFF)
def test_the_end_is_taken_off_however_it_is_called(name: str, photographs: Pictures) -> None:
    given = classifier(Small(TAKEN_OFF[name]))
    outputs = run(given.module, photographs)
    expected = np.exp(outputs) if name.startswith("log") else outputs
    made, ending, scores = found(given, photographs)
    assert ending.normaliser is not None
    assert ending.scores == ("sigmoid" if "sigmoid" in name else "softmax")
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_array_equal(
        run(made.module, photographs), run(Small(nn.Identity()), photographs)
    )
    # Maps explain what stood before it.
    head = examine(made).head
    assert head is not None
    assert list(head.methods) == MAPS


@pytest.mark.parametrize("end", ["softmax", "sigmoid", "linear"])
def test_what_stands_inside_stays(end: str, photographs: Pictures) -> None:
    given = classifier(Attentive(end))
    outputs = run(given.module, photographs)
    _, ending, scores = found(given, photographs)
    assert (ending.normaliser is None) == (end == "linear")
    expected = score(outputs, "softmax") if end == "linear" else outputs
    np.testing.assert_allclose(scores, expected, atol=1e-6)


PROBABILITIES = {
    "written out": lambda z: z.exp() / z.exp().sum(1, keepdim=True),
    "averaged": lambda z: (z.softmax(1) + (-z).softmax(1)) / 2,
    "two of one": lambda z: torch.stack([1 - z[:, 0].sigmoid(), z[:, 0].sigmoid()], 1),
    "sparse": lambda z: functional.normalize(z.relu() + 1e-9, p=1, dim=1),
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_other_probabilities_are_served_by_their_logarithm(
    name: str, photographs: Pictures
) -> None:
    labels = LABELS[:2] if name == "two of one" else LABELS
    given = classifier(Small(PROBABILITIES[name]), labels)
    outputs = run(given.module, photographs)
    _, ending, scores = found(given, photographs)
    assert (ending.scores, ending.form) == ("softmax", "logarithm")
    np.testing.assert_allclose(scores, outputs, atol=1e-6)


@pytest.mark.parametrize(
    "end",
    [
        nn.Identity(),
        nn.ReLU(),
        nn.Sequential(nn.ReLU(), nn.Dropout(0.5)),
        lambda z: z.relu() / 1000,
        lambda z: functional.relu6(z) * 0.01,
        lambda z: z / 0.07,
        lambda z: z[:, :, None].mean(2),
    ],
)
def test_logits_stay_as_they_are(end, photographs: Pictures) -> None:
    given = classifier(Small(end))
    made, ending, scores = found(given, photographs)
    assert (ending.scores, ending.altered) == ("softmax", False)
    assert made.module is given.module
    np.testing.assert_allclose(scores, score(run(given.module, photographs), "softmax"))


@pytest.mark.parametrize("wanted", [None, "sigmoid", "softmax", "none"])
def test_scores_that_nothing_explains_are_the_users_to_name(
    wanted: str | None, photographs: Pictures
) -> None:
    given = classifier(Small(lambda z: (z.tanh() + 1) / 2))
    outputs = run(given.module, photographs)
    if wanted is None:
        with pytest.raises(
            ExportError, match=r"between 0 and 1 on 9 pictures and come from \w*div"
        ):
            found(given, photographs)
        return
    _, ending, scores = found(given, photographs, wanted)
    assert ending.scores == wanted
    expected = score(outputs, "softmax") if wanted == "softmax" else outputs
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_scores_that_are_not_the_networks_are_refused(photographs: Pictures) -> None:
    with pytest.raises(UsageError, match="--scores sigmoid would serve other scores"):
        found(classifier(Small(nn.Softmax(1))), photographs, "sigmoid")
    _, ending, scores = found(classifier(Small(nn.Softmax(1))), photographs, "none")
    assert ending.scores == "none"
    np.testing.assert_allclose(scores, run(Small(nn.Softmax(1)), photographs), atol=1e-6)
    _, ending, scores = found(classifier(Small(nn.Identity())), photographs, "sigmoid")
    assert ending.scores == "sigmoid"
    np.testing.assert_allclose(scores, run(Small(nn.Sigmoid()), photographs), atol=1e-6)


class Pointwise(nn.Module):
    """A 1x1 convolution after the pooling, or before it, with a ReLU where `rectified`."""

    def __init__(self, *, pooled: bool, rectified: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.ReLU())
        self.head = nn.Conv2d(8, 1, 1)
        self.pooled, self.rectified = pooled, rectified

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(x)
        if self.pooled:
            return self.head(maps.mean((2, 3), keepdim=True)).flatten(1)
        scores = self.head(maps)
        return (scores.relu() if self.rectified else scores).mean((2, 3))


ONE_OUTPUT = {
    "logit": Small(nn.Identity(), 1),
    "squeezed": Small(lambda z: z.squeeze(1), 1),
    "all axes squeezed": Small(torch.squeeze, 1),
    "flat": Small(lambda z: z.view(-1), 1),
    "column": Small(lambda z: z[:, 0], 1),
    "scaled": Small(lambda z: z / 3, 1),
    "sigmoid": Small(nn.Sigmoid(), 1),
    "sigmoid, squeezed": Small(lambda z: z.sigmoid().squeeze(-1), 1),
    "squeezed, sigmoid": Small(lambda z: torch.sigmoid(z.squeeze(1)), 1),
    "log-sigmoid": Small(nn.LogSigmoid(), 1),
    "convolution": Pointwise(pooled=True),
    "class map": Pointwise(pooled=False),
    "rectified class map": Pointwise(pooled=False, rectified=True),
}


@pytest.mark.parametrize("name", ONE_OUTPUT)
def test_one_output_is_two_classes_with_maps(name: str, photographs: Pictures) -> None:
    given = classifier(ONE_OUTPUT[name], ("dog",))
    outputs = run(given.module, photographs)
    high = outputs if "sigmoid" in name else score(outputs, "sigmoid")
    high = np.exp(outputs) if name == "log-sigmoid" else high
    made, ending, scores = found(given, photographs)
    assert made.labels == ("not dog", "dog")
    assert (ending.scores, ending.sides) == ("softmax", True)
    np.testing.assert_allclose(scores, np.concatenate([1 - high, high], 1), atol=1e-6)
    if name == "column":
        # Its operator has no rule for gradients.
        return
    head = examine(made).head
    assert head is not None
    exact = name in {"logit", "squeezed", "all axes squeezed", "sigmoid", "sigmoid, squeezed",
                     "squeezed, sigmoid", "log-sigmoid", "convolution", "class map"}  # fmt: skip
    assert list(head.methods) == (MAPS if exact else MAPS[1:])


def test_a_layer_that_is_doubled_is_not_the_users(photographs: Pictures) -> None:
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(nn.Linear(8, 1, bias=False), nn.Sigmoid()),
    )
    given = classifier(module, ("cat", "dog"))
    made, _, _ = found(given, photographs)
    assert module[1][0].weight.shape == (1, 8)
    assert made.module[1][0].weight.shape == (2, 8)
    assert made.module[0] is module[0], "weights are shared"
    again, _, _ = found(given, photographs)
    assert again.labels == made.labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("module", "labels", "said"),
    [
        (Small(nn.Identity(), 1), LABELS, "5 labels for the one output of test:net"),
        (Small(nn.Identity()), LABELS[:3], "3 labels for the 5 classes of test:net"),
        (Small(nn.Softmax(1), 1), ("dog",), "a softmax over one output, which is the same"),
        (nn.Conv2d(3, 5, 3), LABELS, r"test:net returns \[4, 5, 30, 30\] for 4 pictures"),
        (Small(lambda z: {"a": z, "b": z}), LABELS, r"test:net returns dict with .* a \[4, 5\], b"),
    ],
)
def test_what_is_no_classifier_of_the_labels_is_refused(
    module: nn.Module, labels: tuple[str, ...], said: str, photographs: Pictures
) -> None:
    with pytest.raises(ExportError, match=said):
        as_logits(classifier(module, labels), probes(photographs, SPEC))


@pytest.mark.parametrize(
    ("module", "labels", "scores", "methods"),
    [
        (Small(lambda z: functional.softmax(z, dim=1)), LABELS, "softmax", MAPS),
        (Attentive("sigmoid"), LABELS, "sigmoid", None),
        (Small(nn.Sigmoid(), 1), ("dog",), "softmax", MAPS),
        (ONE_OUTPUT["scaled"], ("cat", "dog"), "softmax", MAPS[1:]),
        (Small(PROBABILITIES["averaged"]), LABELS, "softmax", None),
    ],
    ids=["softmax", "sigmoid", "one output", "one scaled output", "probabilities"],
)
def test_the_bundle_serves_what_the_network_says(
    tmp_path: Path, photographs: Pictures, *, module: nn.Module, labels, scores: str, methods
) -> None:
    given = classifier(module, labels)
    outputs = run(given.module, photographs)
    done = export(given, repository=tmp_path, name="net", pictures=photographs)
    assert done.manifest.scores == scores
    if methods is not None:
        assert [cam.method for cam in done.manifest.cams] == methods
    if outputs.shape[1] == 1:
        high = outputs if labels == ("dog",) else score(outputs, "sigmoid")
        outputs = np.concatenate([1 - high, high], 1)
    with Client.local(tmp_path) as client:
        for picture, expected in zip(photographs.images, outputs, strict=True):
            result = client.classify(Prepared(picture), top_k=len(expected))
            got = {prediction.class_id: prediction.score for prediction in result.predictions}
            assert got == pytest.approx(dict(enumerate(expected)), abs=1e-5)
            assert result.scores == scores


MODULE = """
import torch
from torch import nn

def binary():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 1), nn.Sigmoid())
"""


def test_the_command_measures_one_output_by_its_two_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    photographs: Pictures,
) -> None:  # fmt: skip
    """A folder called `dog` is of the second class, though the file of labels has but one."""
    (tmp_path / "binary_net.py").write_text(MODULE)
    (tmp_path / "input.json").write_text(SPEC.model_dump_json())
    (tmp_path / "labels.txt").write_text("dog\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    module = {}
    exec(MODULE, module)  # noqa: S102 - the test's own text
    high = run(module["binary"]().eval(), photographs)[:, 0]
    from PIL import Image  # noqa: PLC0415

    for index, picture in enumerate(photographs.images):
        folder = tmp_path / "data" / ("dog" if high[index] > 0.5 else "not dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).resize((36, 36)).save(folder / f"{index}.png")
    arguments = ["--module", "binary_net:binary", "--input-spec", "input.json",
                 "--labels", "labels.txt", "--repository", "models", "--name", "net.onnx",
                 "--data", "data", "--json"]  # fmt: skip
    assert export_command.main(arguments) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["scores"] == "softmax"
    assert exported["assumptions"]["scores"].endswith("a sigmoid, which was taken off its end")
    assert exported["variants"][0]["accuracy"]["images"] == len(photographs)
    assert (tmp_path / "models/net.onnx/1/labels.txt").read_text() == "not dog\ndog\n"
