import pickle

import pytest
import safetensors.torch
import skimage
import torch
from PIL import Image
from torchvision import models

from foveate_train import registry
from foveate_train.data.preprocess import preprocess
from foveate_train.errors import DataError, WeightsError
from foveate_train.sources.package import rename_by_position


@pytest.fixture
def lenet():
    return registry.create("foveate:lenet5", weights="random:3").module


@pytest.mark.parametrize("form", ["safetensors", "pth", "legacy.pth", "wrapped.pth", "folder"])
def test_a_file_of_any_form_is_loaded(form, lenet, tmp_path):
    state, path = lenet.state_dict(), tmp_path / f"weights.{form}"
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "legacy.pth":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "wrapped.pth":
        torch.save({"epoch": 3, "state_dict": state}, path)
    elif form == "folder":
        path.mkdir()
        torch.save(state, path / "lenet.pth")
    else:
        torch.save(state, path)
    loaded = registry.create("foveate:lenet5", weights=str(path)).module.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_state_dict_that_does_not_fit_is_refused_with_what_differs(lenet, tmp_path):
    state = lenet.state_dict()
    del state["c1.0.bias"]
    state["c1.0.scale"] = torch.ones(6)
    state["output.weight"] = torch.ones(11, 84)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError) as refusal:
        registry.create("foveate:lenet5", weights=str(tmp_path / "other.pth"))
    message = str(refusal.value)
    assert "1 missing: c1.0.bias" in message
    assert "1 unexpected: c1.0.scale" in message
    assert "1 of another shape: output.weight [11, 84] for [10, 84]" in message


def test_a_long_list_of_differences_is_counted(lenet, tmp_path):
    torch.save(lenet.state_dict(), tmp_path / "lenet.pth")
    with pytest.raises(WeightsError, match=r"22 missing: .* and 19 more; 10 unexpected: .*"):
        registry.create("foveate:convnet4", weights=str(tmp_path / "lenet.pth"))


class _Attack:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "no such file"),
        ("none.safetensors", None, "no such file"),
        ("text.pth", b"hello\n", "not a torch file"),
        ("empty.pth", b"", "not a torch file"),
        ("text.safetensors", b"hello, this is no tensor", "not a whole safetensors file"),
        ("code.pth", pickle.dumps(_Attack(), protocol=2), "holds print, which is code"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(name, content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        registry.create("foveate:lenet5", weights=str(tmp_path / name))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_truncated_file_is_refused(suffix, lenet, tmp_path):
    path = tmp_path / f"lenet.{suffix}"
    write = torch.save if suffix == "pth" else safetensors.torch.save_file
    write(lenet.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"not a (torch|whole safetensors) file"):
        registry.create("foveate:lenet5", weights=str(path))


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {3: torch.ones(1)}])
def test_a_torch_file_of_something_else_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        registry.create("foveate:lenet5", weights=str(tmp_path / "other.pth"))


def test_a_folder_must_hold_one_file(lenet, tmp_path):
    with pytest.raises(WeightsError, match="holds none"):
        registry.create("foveate:lenet5", weights=str(tmp_path))
    for name in ("a.pth", "b.pth"):
        torch.save(lenet.state_dict(), tmp_path / name)
    with pytest.raises(WeightsError, match=r"holds a\.pth, b\.pth"):
        registry.create("foveate:lenet5", weights=str(tmp_path))


def test_googlenets_published_file_is_loaded_without_its_auxiliary_heads(tmp_path):
    published = models.googlenet(aux_logits=True, transform_input=True, init_weights=False)
    torch.save(published.state_dict(), tmp_path / "googlenet-1378be20.pth")
    classifier = registry.create(
        "torchvision:googlenet", weights=str(tmp_path / "googlenet-1378be20.pth")
    )
    photograph = preprocess(Image.fromarray(skimage.data.coffee()), classifier.input)[None]
    with torch.inference_mode():
        assert torch.equal(classifier.module(photograph), published.eval()(photograph))


@pytest.fixture(scope="module")
def lite0():
    return registry.create("package:efficientnet_lite0")


def test_the_packages_weights_know_a_cup_of_coffee(lite0):
    photograph = preprocess(Image.fromarray(skimage.data.coffee()), lite0.input)
    assert photograph.shape == (3, 224, 224)
    with torch.inference_mode():
        logits = lite0.module(photograph[None])[0]
    assert lite0.labels[logits.argmax()] == "espresso"
    assert lite0.input.mean == lite0.input.std == (0.5, 0.5, 0.5)


def test_renaming_by_position_refuses_what_is_not_the_same_network(lite0):
    state = lite0.module.state_dict()
    names = list(state)
    renamed = {f"theirs.{index}.{name}": state[name] for index, name in enumerate(names)}
    assert list(rename_by_position(renamed, lite0.module)) == names

    with pytest.raises(WeightsError, match="295 tensors for the network's 296"):
        rename_by_position(dict(list(renamed.items())[1:]), lite0.module)
    # Two neighbours of one shape: scale and shift of a normalisation.
    names[1], names[2] = names[2], names[1]
    renamed = {f"theirs.{name}": state[name] for name in names}
    with pytest.raises(WeightsError, match=r"holds .*bn1\.bias .* the network has bn1\.weight"):
        rename_by_position(renamed, lite0.module)


def test_the_networks_own_names_are_kept_in_any_order(lite0):
    state = lite0.module.state_dict()
    # As safetensors gives them.
    ordered = {name: state[name] for name in sorted(state)}
    assert rename_by_position(ordered, lite0.module) == ordered


def test_grey_and_colour_pictures_take_the_channels_of_the_network(lite0):
    coffee = Image.fromarray(skimage.data.coffee())
    digits = registry.create("foveate:lenet5").input
    assert preprocess(coffee, digits).shape == (1, 28, 28)
    assert preprocess(coffee.convert("L"), lite0.input).shape == (3, 224, 224)
    white = Image.new("L", (40, 60), 255)
    assert torch.allclose(preprocess(white, digits), torch.tensor((1 - 0.1307) / 0.3081))


def test_a_picture_is_no_board_of_go():
    planes = registry.create("foveate:go_policy").input
    with pytest.raises(DataError, match="1, 3 or 4 channels, and the network takes 48"):
        preprocess(Image.fromarray(skimage.data.coffee()), planes)


@pytest.mark.parametrize("size", [1, 2])
def test_the_other_packages_know_it_too(size):
    classifier = registry.create(f"package:efficientnet_lite{size}")
    assert classifier.input.height == (240, 260)[size - 1]
    photograph = preprocess(Image.fromarray(skimage.data.coffee()), classifier.input)
    with torch.inference_mode():
        logits = classifier.module(photograph[None])[0]
    assert classifier.labels[logits.argmax()] == "espresso"


def test_a_folder_of_a_hub_holds_one_network_in_several_forms(lenet, tmp_path):
    safetensors.torch.save_file(lenet.state_dict(), tmp_path / "model.safetensors")
    torch.save(lenet.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = registry.create("foveate:lenet5", weights=str(tmp_path)).module.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in lenet.state_dict().items())


@pytest.mark.parametrize(
    "name", ["torchvision:inception_v3", "timm:vit_tiny_patch16_224", "timm:legacy_seresnet50"]
)
def test_weights_take_the_place_of_every_value(name, tmp_path):
    # What is not drawn at random because weights follow must all come from them.
    first = registry.create(name, weights="random:1").module.state_dict()
    torch.save(first, tmp_path / "weights.pth")
    second = registry.create(name, weights=str(tmp_path)).module
    assert all(torch.equal(tensor, first[key]) for key, tensor in second.state_dict().items())
    assert not any(tensor.is_meta for tensor in [*second.parameters(), *second.buffers()])
