"""A picture of any shape, fitted as the specification says, from the file to the overlay."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from foveate_client import Cam, Client
from foveate_export.commands import export
from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.data.preprocess import preprocess

from ..conftest import served

NETWORK = """
import torch
from torch import nn

def network():
    conv, linear = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(3)[:, :, None, None])
        conv.bias.fill_(0)
        linear.weight.copy_(torch.tensor([[4.0, -2.0, -2.0], [-2.0, 4.0, -2.0]]))
        linear.bias.copy_(torch.tensor([0.125, 0.0]))
    pooled = nn.Sequential(nn.AvgPool2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    return nn.Sequential(conv, nn.ReLU(), *pooled)
"""
SPEC = {
    "height": 64,
    "width": 96,
    "channels": 3,
    "resize": 64,
    "interpolation": "bilinear",
    "mean": [0.0] * 3,
    "std": [1.0] * 3,
}
FITS = {
    "crop": {},
    "squash": {"fit": "squash", "resize": 72},
    "pad": {"fit": "pad", "fill": [0.0, 0.0, 1.0]},
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    names: dict[str, object] = {}
    exec(NETWORK, names)  # noqa: S102  ours
    made = names["network"]()  # type: ignore[operator]
    assert isinstance(made, nn.Module)
    return made.eval()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the network with each fit, under the fit's name."""
    folder = tmp_path_factory.mktemp("fits")
    (folder / "colours.py").write_text(NETWORK, encoding="utf-8")
    (folder / "labels.txt").write_text("red\ngreen\n", encoding="utf-8")
    for name, fields in FITS.items():
        (folder / "input.json").write_text(json.dumps(SPEC | fields), encoding="utf-8")
        command = [
            *("--module", "colours:network", "--name", name, "--repository", "models"),
            *("--input-spec", "input.json", "--labels", "labels.txt"),
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert export.main(command) == 0
    with served(folder / "models") as bound:
        yield bound


@pytest.fixture(params=[(200, 500), (500, 200), (64, 96), (300, 450)], ids=str)
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A dark picture with a red mark at one place of its middle, and green beside it."""
    height, width = request.param
    pixels = np.full((height, width, 3), 20, np.uint8)
    across, down = slice(width // 3, width // 3 + width // 8), slice(height // 2, height * 5 // 8)
    pixels[down, across] = (250, 10, 10)
    pixels[:, width * 3 // 4 :] = (10, 120, 10)
    path = tmp_path / "mark.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("fit", FITS)
def test_the_answer_is_torchs_and_the_map_lies_on_the_mark(
    fit: str, address: str, network: nn.Module, picture: Path
) -> None:
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in (SPEC | FITS[fit]).items()}
    spec = InputSpec(**fields)
    with Image.open(picture) as opened:
        width, height = opened.size
        with torch.no_grad():
            expected = network(preprocess(opened, spec)[None])[0]
    with Client(address) as client:
        answer = client.classify(picture, model=fit, cam=Cam(class_ids=[0]))
        told = client.model(fit).input
    logits = {each.class_id: each.logit for each in answer.predictions}
    assert [logits[0], logits[1]] == pytest.approx(expected.tolist(), abs=0.02)
    (cam,) = answer.cams
    # Within the mark, and a cell around it.
    x, y = cam.peak
    rows, columns = cam.array.shape
    across, down = cam.view.width / columns, cam.view.height / rows
    assert width // 3 - across < x < width // 3 + width // 8 + across
    assert height // 2 - down < y < height * 5 // 8 + down
    assert (told.fit, told.fill) == (fields.get("fit", "crop"), fields.get("fill", ()))
