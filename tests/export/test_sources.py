"""Weights, labels and networks of people's own, from the command to the bundle."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from foveate_export.anatomy.logits import as_logits
from foveate_export.commands import export as export_command
from foveate_export.errors import ExportError, UsageError
from foveate_export.exporter import check_weights, examine
from foveate_export.plain import as_plain
from foveate_export.sources import load_source
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import registry
from foveate_train.classifier import Classifier

SPEC = {
    "height": 32,
    "width": 32,
    "channels": 3,
    "resize": 32,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with an input specification and labels of five classes."""
    (tmp_path / "input.json").write_text(json.dumps(SPEC), encoding="utf-8")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_of_weights_with_labels_and_an_input_of_ones_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    five = registry.create("torchvision:squeezenet1_1", weights="random:1", num_classes=5)
    wrapped = {f"module.{key}": value for key, value in five.module.state_dict().items()}
    torch.save({"model": wrapped, "epoch": 3}, "best.pth")
    where = ["--repository", "models", "--name", "m"]
    named = ["torchvision:squeezenet1_1", "--weights", "best.pth"]
    files = ["--labels", "labels.txt", "--input-spec", "input.json"]
    assert export_command.main([*named, *files, *where]) == 0, capsys.readouterr().err
    bundle = Bundle.open(folder / "models" / "m" / "1")
    assert bundle.labels == tuple("abcde")
    assert (bundle.manifest.input.height, bundle.manifest.arguments) == (32, {"num_classes": 5})
    said = bundle.manifest.assumptions
    assert said["weights"] == "best.pth, under model, the prefix 'module.' taken off"
    assert said["classes"] == "5, as classifier.1.weight has in the file"
    assert said.keys() == {"weights", "classes", "scores", "head"}
    out = capsys.readouterr().out
    assert all(out.count(f"\n{name}: {text}\n") == 1 for name, text in said.items())


def test_what_the_library_gives_a_file_of_weights_is_said(folder: Path) -> None:
    twelve = registry.create("torchvision:squeezenet1_1", weights="random:1", num_classes=12)
    torch.save(twelve.module.state_dict(), "mine.pth")
    classifier = load_source("torchvision:squeezenet1_1", "mine.pth").classifier
    said = classifier.assumptions
    assert said["labels"].startswith("the numbers 0 to 11, as the weights name no classes")
    assert said["input"].startswith("224 x 224 x 3, fit crop, resize 256, bilinear, mean [0.485")
    assert said["input"].endswith("that of torchvision:squeezenet1_1")
    places = {f"class {index}": index for index in range(12)}
    torch.save({"model": twelve.module.state_dict(), "class_to_idx": places}, "named.pth")
    named = load_source("torchvision:squeezenet1_1", "named.pth").classifier
    assert named.labels == tuple(places)
    assert named.assumptions["labels"].startswith("those under class_to_idx in named.pth;")
    random = load_source("torchvision:squeezenet1_1", "random:0").classifier
    assert random.assumptions == {}
    torch.save(random.module.state_dict(), "thousand.pth")
    thousand = load_source("torchvision:squeezenet1_1", "thousand.pth").classifier
    assert thousand.assumptions["labels"].startswith("'tench' to 'toilet tissue', those of the lib")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best.pth", "foveate export NAME --weights best.pth"),
        ("none.ckpt", "none.ckpt: no such file"),
        (".", "holds neither checkpoint.json nor config.json: weights do not say their network"),
        ("net.h5", "net.h5 is no ONNX file by its name"),
    ],
)
def test_a_file_as_the_source(
    name: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({}, "best.pth")
    Path("net.h5").write_bytes(b"\x89HDF")
    assert export_command.main([name, "--list-layers"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


class Returning(nn.Module):
    """A network that returns its logits among other things."""

    def __init__(self, returned: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.fc = nn.Linear(8, 5)
        self.returned = returned

    def forward(self, pixels: torch.Tensor) -> Any:
        embedding = self.features(pixels).mean((2, 3))
        return self.returned(self.fc(embedding), embedding)


@dataclass
class Answer:
    loss: torch.Tensor | None
    prediction: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


class Pair(NamedTuple):
    scores: torch.Tensor
    embedding: torch.Tensor


class Holder:
    def __init__(self, scores: torch.Tensor) -> None:
        self.scores, self.count = scores, 3


RETURNED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "dictionary": (lambda z, e: {"logits": z, "embedding": e}, "logits"),
    "dictionary with two": (lambda z, e: {"aux": 2 * z, "logits": z}, "logits"),
    "only one that fits": (lambda z, e: {"out": z, "embedding": e}, "out"),
    "tuple": (lambda z, e: (e, z), "1"),
    "list with None": (lambda z, e: [z, None], "0"),
    "named tuple": (Pair, "scores"),
    "dataclass": (lambda z, e: Answer(None, z, (e, e)), "prediction"),
    "object": (lambda z, e: Holder(z), "scores"),
    "nested": (lambda z, e: ({"head": {"out": z}}, e), "0.head.out"),
}


def classifier_of(module: nn.Module, **spec: Any) -> Classifier:
    return Classifier(
        name="m:net",
        arguments={},
        module=module.eval(),
        input=InputSpec(**{**SPEC, **spec}),
        labels=tuple("abcde"),
    )


def pictures(size: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, size, size, channels), dtype=np.uint8)


@pytest.mark.parametrize("form", RETURNED)
def test_the_logits_are_found_in_what_a_network_returns(form: str) -> None:
    returned, name = RETURNED[form]
    module = Returning(returned)
    classifier, _ = as_logits(classifier_of(module), pictures())
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = module.fc(module.features(pixels).mean((2, 3)))
        assert torch.equal(classifier.module(pixels), expected)
    assert classifier.assumptions["logits"].startswith(f"{name!r}, of the outputs ")
    assert not module._forward_hooks, "the user's own network is left alone"
    anatomy = examine(classifier)
    assert anatomy.head is not None, anatomy.note
    assert "cam" in anatomy.head.methods


def test_several_that_fit_are_chosen_from_by_name() -> None:
    classifier = classifier_of(Returning(lambda z, e: {"a": z, "b": 2 * z, "e": e}))
    with pytest.raises(ExportError, match=r"a \[4, 5\], b \[4, 5\], e \[4, 8\].*--logits NAME"):
        as_logits(classifier, pictures())
    with pytest.raises(UsageError, match="no 'c'; its tensors are a"):
        as_logits(classifier, pictures(), output="c")
    chosen, _ = as_logits(classifier, pictures(), output="b")
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(chosen.module(pixels), classifier.module(pixels)["b"])


def test_a_dictionary_becomes_a_bundle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("named_outputs.py").write_text(
        "from torch import nn\n"
        "class Named(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.features, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)\n"
        "    def forward(self, x):\n"
        "        maps = self.features(x).relu()\n"
        "        return {'maps': maps, 'out': self.fc(maps.mean((2, 3)))}\n",
        encoding="utf-8",
    )
    files = ["--labels", "labels.txt", "--input-spec", "input.json"]
    where = ["--repository", "models", "--name", "m"]
    code = export_command.main(["--module", "named_outputs:Named", *files, *where])
    assert code == 0, capsys.readouterr().err
    manifest = Bundle.open(folder / "models" / "m" / "1").manifest
    assert manifest.assumptions["logits"] == "'out', of the outputs maps, out"
    assert "gradcam" in {cam.method for cam in manifest.cams}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: net().half(), "its float16 values taken as float32"),
        (lambda: net().double(), "its float64 values taken as float32"),
        (lambda: nn.DataParallel(net()), "DataParallel taken off"),
        (lambda: torch.compile(net()), "OptimizedModule taken off"),
        (lambda: torch.compile(nn.DataParallel(net())), "OptimizedModule, DataParallel taken off"),
        (lambda: torch.optim.swa_utils.AveragedModel(net()), "AveragedModel taken off"),
    ],
)
def test_a_network_is_taken_alone_on_the_cpu_in_float32(
    made: Callable[[], nn.Module], said: str
) -> None:
    plain = as_plain(classifier_of(made()))
    assert type(plain.module) is nn.Sequential
    assert {parameter.dtype for parameter in plain.module.parameters()} == {torch.float32}
    assert plain.assumptions["network"].replace(" taken off, ", ", ") == said
    assert as_plain(classifier_of(net())).assumptions == {}


def test_a_network_without_values_is_refused() -> None:
    with torch.device("meta"):
        empty = net()
    with pytest.raises(ExportError, match=r"0\.weight is on the device meta and has no values"):
        as_plain(classifier_of(empty))
    broken = net()
    with torch.no_grad():
        broken[4].bias[1] = float("inf")
    with pytest.raises(ExportError, match=r"not finite \(NaN or infinity\): 4\.bias"):
        as_plain(classifier_of(broken))


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_what_cannot_be_looked_into_is_refused() -> None:
    with pytest.raises(ExportError, match="m:net is TorchScript, within which no layers can be"):
        as_plain(classifier_of(torch.jit.trace(net().eval(), torch.zeros(1, 3, 32, 32))))
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten())
    with pytest.raises(ExportError, match=r"0\.weight has no values before the network has run"):
        as_plain(classifier_of(lazy))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def net(a):\n    pass\n", "raised TypeError: net() missing 1 required positional"),
        ("def net():\n    return open('gone.pth')\n", "'gone.pth' (own_code.py:2)"),
        (
            "import torch\nraise ValueError('no')\n",
            "own_code raised ValueError: no (own_code.py:2)",
        ),
        ("def net(:\n", "own_code raised SyntaxError: invalid syntax"),
    ],
)
def test_what_the_users_code_raises_is_said_in_a_line(
    text: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own_code.py").write_text(text, encoding="utf-8")
    sys.modules.pop("own_code", None)
    importlib.invalidate_caches()
    files = ["--labels", "labels.txt", "--input-spec", "input.json"]
    assert export_command.main(["--module", "own_code:net", *files, "--list-layers"]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


class Quiet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.net(pixels)
        return output


class Detached(Quiet):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.net[4](self.net[:4](pixels).detach())


@pytest.mark.parametrize("kind", [Quiet, Detached])
def test_a_network_without_gradients_has_no_maps_and_says_why(kind: type[nn.Module]) -> None:
    anatomy = examine(classifier_of(kind()))
    assert anatomy.head is None
    assert "autograd gives no gradient to compare them with" in str(anatomy.note)


def test_a_size_that_the_network_does_not_take_is_refused_in_a_line() -> None:
    flat = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(), nn.Linear(8 * 64, 5))
    with pytest.raises(UsageError, match=r"does not take 48 x 48 pictures of 3 channels"):
        as_logits(classifier_of(flat, height=48, width=48, resize=48), pictures(48))
    four = net()
    four[0] = nn.Conv2d(4, 8, 3)
    with pytest.raises(UsageError, match="pictures of 3 channels, as its input specification"):
        as_logits(classifier_of(four), pictures())


def test_a_folder_of_transformers_becomes_a_bundle(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        id2label=dict(enumerate("xyz")),
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
    )
    transformers.ResNetForImageClassification(config).save_pretrained("mine")
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained("mine")
    where = ["--repository", "models", "--name", "m"]
    assert export_command.main(["mine", *where]) == 0, capsys.readouterr().err
    bundle = Bundle.open(folder / "models" / "m" / "1")
    assert bundle.labels == tuple("xyz")
    assert (bundle.manifest.input.height, bundle.manifest.input.fit) == (64, "squash")
    assert bundle.manifest.assumptions["logits"] == "'logits', of the outputs logits"
    assert {"cam", "gradcam"} <= {cam.method for cam in bundle.manifest.cams}
    assert export_command.main(["mine", "--labels", "labels.txt", *where]) == 2
    assert "5 labels for the 3 classes" in capsys.readouterr().err
    assert export_command.main(["mine", "--weights", "random:0", *where]) == 2
    assert "mine brings its weights and arguments" in capsys.readouterr().err


def test_a_network_larger_than_a_bundle_is_refused_before_any_work() -> None:
    with torch.device("meta"):
        huge = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(2048, 210_000))
    with pytest.raises(ExportError, match=r"m:net, 430,290,224 values in float32: 1\.7 GB of"):
        check_weights(classifier_of(huge))
    shared = net()
    shared.extend([shared[4]] * 3)
    check_weights(classifier_of(shared))
