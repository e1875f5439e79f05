"""Models in the process, without a server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foveate_client import AsyncClient, Cam, Classification, Client, ImageError, NotFoundError

FOVEATE = Path(sys.executable).with_name("foveate")


def test_classify_list_and_describe(imagenet_repository, coffee, chelsea):
    with Client.local(imagenet_repository) as client:
        result = client.classify(coffee, cam=Cam(), timing=True)
        assert result.predictions[0].label == "espresso"
        assert result.cams[0].has_evidence
        assert result.timing.backend == "onnxruntime"
        assert [x.name for x in client.models()] == ["efficientnet_lite0"]
        assert client.model().input.height == 224
        with pytest.raises(NotFoundError):
            client.model("resnet50")
        many = list(client.classify_many([coffee, coffee.parent, chelsea], in_flight=2))
    assert [type(x) for x in many] == [Classification, ImageError, Classification]


async def test_the_blocking_client_where_a_loop_runs_as_in_a_notebook(imagenet_repository, coffee):
    with Client.local(imagenet_repository) as client:
        assert client.classify(coffee).predictions[0].label == "espresso"


async def test_the_same_under_asyncio(imagenet_repository, coffee, chelsea):
    async with AsyncClient.local(imagenet_repository) as client:
        assert (await client.classify(coffee)).predictions[0].label == "espresso"
        assert [x.name async for x in client.models()] == ["efficientnet_lite0"]
        many = [
            x async for x in client.classify_many([coffee, coffee.parent, chelsea], in_flight=2)
        ]
        assert [type(x) for x in many] == [Classification, ImageError, Classification]
        abandoned = client.classify_many([coffee] * 8, in_flight=4)
        await anext(abandoned)
        await abandoned.aclose()


def test_the_models_of_a_repository_on_the_command_line(imagenet_repository):
    def models(*arguments: str) -> object:
        command = [FOVEATE, "models", *arguments, "--repository", imagenet_repository, "--json"]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    (listed,) = models()
    assert (listed["name"], listed["default_version"]) == ("efficientnet_lite0", "1")
    described = models("efficientnet_lite0")
    assert len(described["labels"]) == 1000
    assert described["cam_methods"][0]["name"] == "cam"


def test_a_model_says_how_the_network_lays_its_layers_out(imagenet_repository, tmp_path):
    shutil.copytree(imagenet_repository, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "efficientnet_lite0" / "1" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["features"][0]["layout"] = "nhwc"
    manifest["cams"][0]["layout"] = "tokens(7, 7, 1)"
    file.write_text(json.dumps(manifest))
    with Client.local(tmp_path) as client:
        model = client.model("efficientnet_lite0")
    assert [layer.layout for layer in model.layers[:2]] == ["nhwc", "nchw"]
    assert [method.layout for method in model.cam_methods[:2]] == ["tokens(7, 7, 1)", "nchw"]
