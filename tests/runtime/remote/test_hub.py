"""A bundle on a hub: pushed with its card, pulled, and refused with a wrong token."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate_runtime.bundle.bundle import Bundle

from ...conftest import FOVEATE
from .hub import TOKEN, Hub, running_hub

WRONG = "hf_wrong"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


def foveate(hub: Hub, *arguments: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token}
    return subprocess.run(
        [FOVEATE, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_a_bundle_goes_there_and_back(hub: Hub, bundles: Path, tmp_path: Path) -> None:
    refused = foveate(hub, "push", bundles / "colours/1", "hf://owner/name", token=WRONG)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("foveate push: hf://owner/name: ")
    assert WRONG not in refused.stderr
    assert not hub.commits

    pushed = foveate(hub, "push", bundles / "colours/1", "hf://owner/name")
    assert (pushed.returncode, pushed.stdout) == (0, "hf://owner/name\n"), pushed.stderr
    files = hub.files("main")
    assert files["manifest.json"] == (bundles / "colours/1/manifest.json").read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\n")
    assert "library_name: foveate" in card

    folder = tmp_path / "pulled"
    pulled = foveate(hub, "pull", "hf://owner/name", "--repository", folder)
    assert (pulled.returncode, pulled.stdout) == (0, f"{folder}/colours/1\n"), pulled.stderr
    assert Bundle.open(folder / "colours/1").digest == Bundle.open(bundles / "colours/1").digest

    gone = foveate(hub, "pull", "hf://owner/other", "--repository", folder)
    assert gone.returncode == 1
    assert "there is no such repository" in gone.stderr
