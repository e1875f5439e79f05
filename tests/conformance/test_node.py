"""Node drives the server with the .proto files that the wheel carries."""

import json
import re
import subprocess
from pathlib import Path

import google.rpc
import pytest
from skimage import data_dir

import foveate.v1
from foveate_client import Cam, Client, Features

pytestmark = pytest.mark.network

NODE = Path(__file__).parent / "node"
PAGE = Path(__file__).parents[2] / "docs/client/other-languages.md"
PROTOS = Path(foveate.v1.__path__[0]).parents[1]
GOOGLE_PROTOS = Path(google.rpc.__path__[0]).parents[1]
CHELSEA = Path(data_dir) / "chelsea.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages installed and the programs beside them."""
    folder = tmp_path_factory.mktemp("node")
    for file in NODE.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    npm = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    subprocess.run(npm, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder


def node(folder: Path, *arguments: str | Path) -> str:
    command = ["node", *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def answers(folder, imagenet_server) -> dict:
    return json.loads(node(folder, "client.mjs", imagenet_server, PROTOS, GOOGLE_PROTOS, CHELSEA))


def test_models_are_listed_and_described(answers):
    assert answers["models"] == [["efficientnet_lite0", "1"]]
    assert answers["model"] == {"state": "MODEL_STATE_READY", "labels": 1000, "input": 224}


def test_a_classification_is_the_one_that_the_client_reads(answers, imagenet_server):
    with Client(imagenet_server) as client:
        layer = client.model().layers[0]
        expected = client.classify(
            CHELSEA, top_k=3, cam=Cam(top=2), feature_maps=[Features(layer.name, (0, 5))]
        )
    assert [(x["class_id"], x["label"]) for x in answers["predictions"]] == [
        (x.class_id, x.label) for x in expected.predictions
    ]
    assert [x["score"] for x in answers["predictions"]] == pytest.approx(
        [x.score for x in expected.predictions], rel=1e-5
    )
    cam = answers["cam"]
    assert cam["label"] == expected.cams[0].label
    assert cam["values"] == pytest.approx(expected.cams[0].array.ravel().tolist(), rel=1e-4)
    assert (cam["minimum"], cam["maximum"], cam["overlay"]) == (0, 0, "PNG")
    assert answers["featureMap"]["channels"] == [0, 5]
    assert answers["featureMap"]["cells"] == layer.height * layer.width
    assert answers["featureMap"]["values"] == 2 * layer.height * layer.width
    assert answers["inferred"]["nanos"] > 0


def test_a_stream_goes_on_past_a_picture_that_is_none(answers):
    label = answers["predictions"][0]["label"]
    first, broken, last = answers["stream"]
    assert first == ["first", "response", label]
    assert broken[:2] == ["broken", "error"]
    assert last == ["last", "response", label]


def test_errors_are_typed(answers):
    bad, missing = answers["badArgument"], answers["noModel"]
    assert bad["code"] == "INVALID_ARGUMENT"
    assert bad["details"]["google.rpc.ErrorInfo"]["domain"] == "foveate"
    (violation,) = bad["details"]["google.rpc.BadRequest"]["field_violations"]
    assert violation["field"] == "top_k"
    assert missing["code"] == "NOT_FOUND"
    assert missing["details"]["google.rpc.ErrorInfo"]["reason"]


def test_the_program_of_the_page_prints_what_the_client_finds(folder, imagenet_server):
    (program,) = re.findall(
        r"^```javascript\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    (folder / "page.mjs").write_text(program, encoding="utf-8")
    *printed, cam = node(folder, "page.mjs", imagenet_server, PROTOS, CHELSEA).splitlines()
    with Client(imagenet_server) as client:
        expected = client.classify(CHELSEA, top_k=3, cam=Cam(top=1))
    assert [line.rpartition(" ")[0] for line in printed] == [x.label for x in expected.predictions]
    assert cam.startswith("cam: 7 x 7 cells, the largest ")
    assert float(cam.rpartition(" ")[2]) == pytest.approx(expected.cams[0].maximum, rel=1e-4)
