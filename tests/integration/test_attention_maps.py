"""Maps of a class token's attention, from the export to the command line's files."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import FOVEATE, served

from foveate_client.commands import classify
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_train.data import mnist

METHODS = ["relevance", "rollout", "legrad", "layercam", "hirescam", "gradcam"]


@pytest.fixture(scope="module")
def vit_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export `foveate:vit_mnist` with random weights, as `vit`."""
    folder = tmp_path_factory.mktemp("vit")
    command = [FOVEATE, "export", "foveate:vit_mnist", "--weights", "random:3"]
    subprocess.run(
        [*command, "--repository", folder, "--name", "vit"], check=True, stdout=subprocess.DEVNULL
    )
    return folder


def test_the_command_line_draws_them_in_its_process_and_from_a_server(
    vit_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits, _ = mnist.load("test")
    picture = tmp_path / "digit.png"
    Image.fromarray(digits[0]).save(picture)
    bundle = Bundle.open(vit_repository / "vit" / "1")
    assert [cam.method for cam in bundle.manifest.cams] == METHODS
    parity = bundle.manifest.variants[0].parity
    assert max(parity.cams.values()) < 1e-4
    with create_runner(bundle) as runner:
        asked = {"image": digits[:1, :, :, None], "class_ids": np.array([[-1, -2]])}
        expected = runner.run(asked, [f"cam.{method}" for method in METHODS])

    with served(vit_repository) as address:
        for place in (["--repository", vit_repository], ["--address", address]):
            for method in ("rollout", "relevance", "legrad"):
                out = tmp_path / "out"
                arguments = [picture, *place, "--model", "vit", "--json"]
                arguments += ["--cam-top", "2", "--cam-method", method, "--out", out]
                assert classify.main([str(argument) for argument in arguments]) == 0
                cams = json.loads(capsys.readouterr().out)["cams"]
                assert [cam["method"] for cam in cams] == [method] * 2
                assert all(Path(cam["path"]).is_file() for cam in cams)
                for k, cam in enumerate(cams):
                    cells = np.load(Path(cam["path"]).with_suffix(".npy"))
                    np.testing.assert_allclose(cells, expected[f"cam.{method}"][0, k], rtol=1e-5)
