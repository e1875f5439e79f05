"""Weights in the forms in which training scripts leave them."""

import argparse
import json
import pathlib
import pickle
from collections import defaultdict
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from foveate_train import registry
from foveate_train.errors import WeightsError
from foveate_train.head import with_new_head
from foveate_train.state_dicts import class_names, find, read


@pytest.fixture
def trained():
    return registry.create("foveate:lenet5", weights="random:3").module.state_dict()


def averages(state):
    """Return other values than those of `state`, as an average over time has."""
    return {key: value + 1 for key, value in state.items()}


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


class Dotted(dict):
    """A dictionary of settings whose keys are attributes, as several libraries have."""


class Settings:
    def __init__(self):
        self.lr, self.path = 0.1, pathlib.Path("data")


OPTIONS = argparse.Namespace(lr=0.1, model="lenet5")

PLAIN = {
    "timm before its first average": lambda s: {"arch": "x", "state_dict": s, "args": OPTIONS},
    "PyTorch's tutorial": lambda s: {"model_state_dict": s, "epoch": 1, "loss": 0.5},
    "compiled": lambda s: under("_orig_mod.", s),
    "parallel": lambda s: under("module.", s),
    "parallel and compiled": lambda s: under("module._orig_mod.", s),
    "compiled and parallel": lambda s: under("_orig_mod.module.", s),
    "Lightning": lambda s: {
        "state_dict": under("model.", s) | {"criterion.weight": torch.ones(10)},
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": Dotted(lr=0.1, settings=Settings()),
        "callbacks": {"best": pathlib.Path("best.ckpt"), "counts": defaultdict(list, {"a": [1]})},
        "loops": {"epoch": torch.float32},
    },
    "Lightning, compiled": lambda s: {"state_dict": under("net._orig_mod.", s)},
    "a backbone": lambda s: {"model": under("backbone.", s)},
    "nested": lambda s: {"checkpoint": 3, "model": {"state_dict": under("module.", s)}},
    "without an average": lambda s: {"state_dict": s, "state_dict_ema": None},
    "half": lambda s: {key: value.half() for key, value in s.items()},
}

AVERAGED = {
    "timm": lambda s, a: {"arch": "x", "state_dict": s, "state_dict_ema": a, "args": OPTIONS},
    "torchvision": lambda s, a: {
        "model": s,
        "args": OPTIONS,
        "model_ema": under("module.", a) | {"n_averaged": torch.tensor(1)},
    },
    "within the model": lambda s, a: {
        "state_dict": under("model.", s) | under("model_ema.module.", a)
    },
    "as a module of its own": lambda s, a: {"ema": {"module": a}, "model": s},
}


@pytest.mark.parametrize("form", PLAIN)
def test_what_training_scripts_leave_is_read(form, trained, tmp_path):
    path = tmp_path / "best.ckpt"
    torch.save(PLAIN[form](trained), path)
    loaded = registry.create("foveate:lenet5", weights=str(path))
    state = loaded.module.state_dict()
    tolerance = 1e-3 if form == "half" else 0
    assert all(torch.allclose(state[key], trained[key], 0, tolerance) for key in trained)
    assert all(value.dtype is torch.float32 for value in state.values())
    said = loaded.assumptions["weights"]
    assert said.startswith("best.ckpt")
    assert "EMA" not in said
    if form == "Lightning":
        assert said.endswith("the prefix 'model.' taken off, criterion.weight beside it left out")
    if form == "half":
        assert said == "best.ckpt, float16 taken as float32"


@pytest.mark.parametrize("form", AVERAGED)
def test_averaged_weights_are_preferred_and_said(form, trained, tmp_path):
    path = tmp_path / "last.pth.tar"
    torch.save(AVERAGED[form](trained, averages(trained)), path)
    loaded = registry.create("foveate:lenet5", weights=str(path))
    state = loaded.module.state_dict()
    assert all(torch.equal(state[key], trained[key] + 1) for key in trained)
    assert "averaged weights (EMA)" in loaded.assumptions["weights"]


def test_safetensors_of_a_wrapped_network(trained, tmp_path):
    safetensors.torch.save_file(under("module.", trained), tmp_path / "model.safetensors")
    loaded = registry.create("foveate:lenet5", weights=str(tmp_path))
    assert torch.equal(loaded.module.state_dict()["c1.0.bias"], trained["c1.0.bias"])


class Own(nn.Sequential):
    """A network of the user's own, whose code a checkpoint does not hold."""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"class_names": ["a", "b", "c"]}, ("class_names", ("a", "b", "c"))),
        ({"class_to_idx": {"c": 2, "a": 0, "b": 1}}, ("class_to_idx", ("a", "b", "c"))),
        ({"id2label": {"0": "a", "1": "b"}}, ("id2label", ("a", "b"))),
        ({"names": {0: "a", 1: "b"}}, ("names", ("a", "b"))),
        ({"meta": {"CLASSES": ("a", "b")}}, ("CLASSES", ("a", "b"))),
        ({"args": argparse.Namespace(classes=["a"], lr=1)}, ("classes", ("a",))),
        ({"class_to_idx": {"a": 0, "b": 2}}, None),
        ({"classes": 3, "names": []}, None),
        ({"epoch": 1}, None),
    ],
)
def test_the_names_of_the_classes_are_found_beside_the_weights(content, expected, tmp_path):
    torch.save({"state_dict": {"w": torch.ones(1)}, **content}, tmp_path / "best.pth")
    assert class_names(tmp_path / "best.pth") == expected


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_saved_as_an_object_gives_its_tensors(wrapped, tmp_path):
    module = Own(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    )
    torch.save({"ema": None, "model": module} if wrapped else module, tmp_path / "whole.pt")
    found = read(tmp_path / "whole.pt")
    state = module.state_dict()
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[key], state[key]) for key in state)


class Attack:
    def __reduce__(self):
        return (print, ("this must not run",))


class Shell:
    def __reduce__(self):
        import os  # noqa: PLC0415

        return (os.system, ("echo this must not run",))


@pytest.mark.parametrize("attack", [Attack, Shell])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_checkpoint_runs(attack, zipped, trained, tmp_path, capfd):
    path = tmp_path / "code.pth"
    content = {"state_dict": trained, "args": attack()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if attack is Attack and zipped:
        assert read(path).state.keys() == trained.keys()
    else:
        with pytest.raises(WeightsError, match=r"holds (print|\w+\.system), which is code"):
            read(path)
    assert capfd.readouterr().out == ""


def test_code_that_stands_alone_is_refused(tmp_path, capfd):
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(WeightsError, match="holds print, which is code and is not run"):
        read(tmp_path / "code.pth")
    assert capfd.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_torchscript_archive_is_named(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "traced.pt")
    with pytest.raises(WeightsError, match=r"a TorchScript archive.* save the state dict"):
        read(tmp_path / "traced.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {}}, r"its keys are epoch, optimizer; save that of the network"),
        ({"state": {}, "param_groups": [{"lr": 1}]}, "its keys are state, param_groups; save that"),
        ([1, 2], "holds no state dict: list"),
        ({}, "it is empty"),
        (SimpleNamespace(), "SimpleNamespace"),
    ],
)
def test_what_holds_no_weights_is_described(content, message):
    with pytest.raises(WeightsError, match=message):
        find(content)


def test_two_parts_that_fit_are_not_guessed_between(trained, tmp_path):
    path = tmp_path / "distilled.pth"
    torch.save(under("teacher.", trained) | under("student.", trained), path)
    with pytest.raises(WeightsError, match=r"'teacher\.' and 'student\.' fit the network"):
        registry.create("foveate:lenet5", weights=str(path))


def test_values_that_are_not_finite_are_named(trained, tmp_path):
    broken = {key: value.clone() for key, value in trained.items()}
    broken["output.weight"][3, 5] = float("nan")
    torch.save(broken, tmp_path / "diverged.pth")
    with pytest.raises(WeightsError, match=r"not finite \(NaN or infinity\): output\.weight"):
        registry.create("foveate:lenet5", weights=str(tmp_path / "diverged.pth"))


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:resnet18"])
def test_the_heads_shape_says_how_many_classes_there_are(name, tmp_path):
    seven = registry.create(name, weights="random:2", num_classes=7)
    torch.save({"state_dict": under("module.", seven.module.state_dict())}, tmp_path / "best.pth")
    loaded = registry.create(name, weights=str(tmp_path / "best.pth"))
    assert loaded.labels == tuple("0123456")
    assert loaded.assumptions["classes"].startswith("7, as ")
    pixels = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(loaded.module(pixels), seven.module(pixels))
    with pytest.raises(WeightsError, match="of another shape"):
        registry.create(name, weights=str(tmp_path / "best.pth"), num_classes=9)


def test_another_architecture_is_refused_by_the_first_names_that_do_not_fit(tmp_path):
    other = registry.create("torchvision:resnet18", weights="random:2").module.state_dict()
    torch.save(under("module.", other), tmp_path / "resnet18.pth")
    with pytest.raises(WeightsError) as refusal:
        registry.create("torchvision:mobilenet_v2", weights=str(tmp_path / "resnet18.pth"))
    message = str(refusal.value)
    assert "\n" not in message
    assert "missing: features.0.0.weight" in message
    assert len(message) < 600


def test_the_counters_of_batch_normalisations_may_be_missing(tmp_path):
    network = registry.create("torchvision:resnet18", weights="random:2").module.state_dict()
    old = {key: value for key, value in network.items() if "num_batches" not in key}
    torch.save(old, tmp_path / "resnet18-5c106cde.pth")
    loaded = registry.create(
        "torchvision:resnet18", weights=str(tmp_path / "resnet18-5c106cde.pth")
    )
    assert torch.equal(loaded.module.state_dict()["fc.bias"], network["fc.bias"])


WRAPPED = {
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "compiled within DataParallel": lambda module: nn.DataParallel(torch.compile(module)),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "averaged DataParallel": lambda m: torch.optim.swa_utils.AveragedModel(nn.DataParallel(m)),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_what_torchs_own_wrappers_save_is_read(wrapper, tmp_path):
    module = registry.create("torchvision:resnet18", weights="random:4", num_classes=3).module
    torch.save({"model": WRAPPED[wrapper](module).state_dict()}, tmp_path / "best.pth")
    loaded = registry.create("torchvision:resnet18", weights=str(tmp_path / "best.pth"))
    state = loaded.module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())


def test_what_timms_own_saver_writes_is_read(tmp_path):
    module = timm.create_model("test_resnet", num_classes=3)
    average = timm.utils.ModelEmaV3(module)
    with torch.no_grad():
        average.module.fc.bias.add_(1)
    saver = timm.utils.CheckpointSaver(
        module,
        torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
        args=argparse.Namespace(model="test_resnet", lr=0.1, data_dir=pathlib.Path("data")),
        model_ema=average,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(3, metric=0.5)
    loaded = registry.create("timm:test_resnet", weights=str(tmp_path / "model_best.pth.tar"))
    assert torch.equal(loaded.module.fc.bias, average.module.fc.bias)
    said = loaded.assumptions["weights"]
    assert said == "model_best.pth.tar, under state_dict_ema, the averaged weights (EMA)"


def divided(state, folder, form="model{}.safetensors"):
    """Write `state` into two files and their index, as Hugging Face's libraries do."""
    keys = list(state)
    places = {key: form.format(f"-{1 + (i >= 3)}-of-2") for i, key in enumerate(keys)}
    save = safetensors.torch.save_file if form.endswith(".safetensors") else torch.save
    for name in set(places.values()):
        held = {key: state[key].contiguous() for key in keys if places[key] == name}
        save(held, folder / name)
    index = folder / f"{form.format('')}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("form", ["model{}.safetensors", "pytorch_model{}.bin"])
def test_weights_in_several_files_are_read_by_their_index(form, trained, tmp_path):
    index = divided(trained, tmp_path, form)
    for given in (index, tmp_path):
        loaded = registry.create("foveate:lenet5", weights=str(given))
        for key, value in loaded.module.state_dict().items():
            torch.testing.assert_close(value, trained[key])
        assert f"{index.name}, in 2 files" in loaded.assumptions["weights"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda places: dict.fromkeys(places, "../secret.safetensors"),
            "no file of weights beside it",
        ),
        (lambda places: dict.fromkeys(places, "model-1-of-2.safetensors"), "lacks"),
        (lambda places: dict.fromkeys(places, "model-3-of-2.safetensors"), "is missing"),
        (list, "not a table"),
        (lambda _: {}, "not a table"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(trained, tmp_path, change, said):
    index = divided(trained, tmp_path)
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": change(places)}))
    with pytest.raises(WeightsError, match=said):
        read(index)


def test_an_index_that_is_none_is_refused(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("[1, 2]")
    with pytest.raises(WeightsError, match="not an index"):
        read(index)


def test_an_adapter_is_named_and_not_compared_with_a_network(tmp_path):
    names = ("lora_A", "lora_B")
    state = {f"base_model.model.fc.{name}.weight": torch.ones(4, 4) for name in names}
    safetensors.torch.save_file(state, tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"an adapter \(base_model.*merge it into the network"):
        read(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("renamed", "said"),
    [
        ("fc.1.", "the training script changed that layer; --module takes the network"),
        (None, "it has no fc, so it is no trained classifier; foveate train finetune"),
    ],
)
def test_a_head_of_another_form_says_what_to_do(renamed, said, tmp_path):
    state = timm.create_model("test_resnet", num_classes=5).state_dict()
    for key in ("fc.weight", "fc.bias"):
        value = state.pop(key)
        if renamed:
            state[key.replace("fc.", renamed)] = value
            # Before it stands a layer of weights of its own, such as a normalisation.
            state["fc.0.weight"] = torch.ones(8)
    torch.save(state, tmp_path / "best.pth")
    with pytest.raises(WeightsError, match=said):
        registry.create("timm:test_resnet", weights=str(tmp_path / "best.pth"))


def test_values_that_are_not_finite_are_named_where_the_classes_differ_too(tmp_path):
    state = timm.create_model("test_resnet", num_classes=5).state_dict()
    state["fc.bias"][0] = float("nan")
    torch.save(state, tmp_path / "best.pth")
    with pytest.raises(WeightsError, match=r"not finite .*: fc\.bias"):
        registry.create("timm:test_resnet", weights=str(tmp_path / "best.pth"))


HEADS = {
    "fc.1.": "its layer fc.1 taken for fc",
    "classifier.": "its layer classifier taken for fc",
}


@pytest.mark.parametrize("renamed", HEADS)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_head_under_another_name_is_taken_and_said(renamed, prefix, tmp_path):
    network = timm.create_model("test_resnet", num_classes=5).eval()
    state = under(prefix, network.state_dict())
    for part in ("weight", "bias"):
        # Beside the backbone stands a head of the script's own; within it one behind a dropout.
        place = prefix if renamed.startswith("fc") else ""
        state[f"{place}{renamed}{part}"] = state.pop(f"{prefix}fc.{part}")
    torch.save(state, tmp_path / "best.pth")
    found = registry.create("timm:test_resnet", weights=str(tmp_path / "best.pth"))
    pictures = torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(found.module(pictures), network(pictures), rtol=0, atol=0)
    assert HEADS[renamed] in found.assumptions["weights"]
    assert "left out" not in found.assumptions["weights"]


def test_a_head_without_a_bias_has_one_of_zeros(tmp_path):
    network = timm.create_model("test_resnet", num_classes=5).eval()
    network.fc.bias.data.zero_()
    state = network.state_dict()
    state["fc.1.weight"] = state.pop("fc.weight")
    del state["fc.bias"]
    torch.save(state, tmp_path / "best.pth")
    found = registry.create("timm:test_resnet", weights=str(tmp_path / "best.pth"))
    assert torch.equal(found.module.fc.weight, network.fc.weight)
    assert not found.module.fc.bias.any()
    assert "zeros for fc.bias" in found.assumptions["weights"]


@pytest.mark.parametrize("name", ["loss.weight", "fc.0.weight"])
def test_a_matrix_that_may_be_no_head_is_not_taken_for_one(name, tmp_path):
    state = under("backbone.", timm.create_model("test_resnet", num_classes=0).state_dict())
    columns = timm.create_model("test_resnet").num_features
    # The weight of a loss; or the first of two layers, where nothing says what is between.
    state[name] = torch.rand(5, columns)
    state["fc.2.weight"] = torch.rand(5, 5)
    if name.startswith("loss"):
        del state["fc.2.weight"]
    torch.save(state, tmp_path / "best.pth")
    with pytest.raises(WeightsError, match="it has no fc"):
        registry.create("timm:test_resnet", weights=str(tmp_path / "best.pth"))


def self_distilled(state, teacher):
    """Return what DINO saves: two networks with heads of their own, one of them parallel."""
    heads = {"head.mlp.0.weight": torch.rand(8, 8), "head.last_layer.weight_v": torch.rand(4, 8)}
    return {
        "student": under("module.", under("backbone.", state) | heads),
        "teacher": under("backbone.", teacher) | heads,
        "epoch": 3,
        "args": OPTIONS,
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def test_the_teacher_of_a_self_distilled_network_is_its_average(trained, tmp_path):
    # A later step of the same training.
    later = {key: value * 1.01 for key, value in trained.items()}
    torch.save(self_distilled(trained, later), tmp_path / "last.pth")
    loaded = registry.create("foveate:lenet5", weights=str(tmp_path / "last.pth"))
    assert torch.equal(loaded.module.state_dict()["c1.0.weight"], later["c1.0.weight"])
    assert "under teacher, the averaged weights (EMA)" in loaded.assumptions["weights"]


def test_the_student_of_another_network_is_what_was_trained(trained, tmp_path):
    teacher = timm.create_model("test_resnet").state_dict()
    torch.save({"student": trained, "teacher": teacher}, tmp_path / "last.pth")
    loaded = registry.create("foveate:lenet5", weights=str(tmp_path / "last.pth"))
    assert torch.equal(loaded.module.state_dict()["c1.0.weight"], trained["c1.0.weight"])
    assert "under student" in loaded.assumptions["weights"]


def test_two_trainings_of_one_network_are_not_guessed_between(trained, tmp_path):
    other = registry.create("foveate:lenet5", weights="random:4").module.state_dict()
    torch.save({"student": trained, "teacher": other}, tmp_path / "last.pth")
    with pytest.raises(WeightsError, match="neither is the average"):
        registry.create("foveate:lenet5", weights=str(tmp_path / "last.pth"))


def test_a_self_supervised_backbone_is_fine_tuned_with_a_new_head(tmp_path):
    backbone = timm.create_model("test_vit", num_classes=0)
    torch.save(self_distilled(backbone.state_dict(), backbone.state_dict()), tmp_path / "dino.pth")
    given = {"weights": str(tmp_path / "dino.pth"), "seed": 0, "arguments": {}}
    with pytest.raises(WeightsError, match=r"it has no head, .* foveate train finetune"):
        registry.create("timm:test_vit", weights=given["weights"])
    classifier, head = with_new_head("timm:test_vit", ("a", "b"), **given)
    own = classifier.module.state_dict()
    assert head == {"head.weight", "head.bias"}
    assert all(torch.equal(own[key], value) for key, value in backbone.state_dict().items())
    said = classifier.assumptions["weights"]
    assert "under teacher, the averaged weights (EMA)" in said
    assert "without head, which is new" in said
