"""Every snippet of docs/client/ runs, and prints what the page says.

In a page, each ```python and each ```bash block is a program of its own; all of
a page's run in their order, in one folder that holds cat.jpg, coffee.jpg,
photographs/<label>/*.jpg and the repository models/. A server of models/ is at
localhost:50051; servers with certificates are at models.example:443, which asks
for the token in the file token, and at factory.example:443, which asks for a
client's certificate: client.pem and client-key.pem. A ```text block right after
a program is what it prints, where numbers and bars may differ.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from PIL import Image
from skimage import data

from ..conftest import served

PAGES = sorted((Path(__file__).parents[2] / "docs/client").glob("*.md"))
SERVERS = {
    "localhost:50051": "imagenet_server",
    "models.example:443": "server_with_tokens",
    "factory.example:443": "server_with_mutual_tls",
}
"""The fixture of each address that pages name."""
TOKEN = "correct-horse-battery-staple"  # noqa: S105 - a test's own
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
LIMIT_SECONDS = 120


class Program(NamedTuple):
    language: str
    source: str
    output: str | None
    line: int


def programs(page: Path) -> list[Program]:
    text = page.read_text(encoding="utf-8")
    return [
        Program(match[1], match[2], match[3], text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
        if match[1] in {"python", "bash"}
    ]


def shape(output: str) -> list[str]:
    """Return the words of `output`, with every number and bar alike."""
    return re.sub(r"[\d.,]*\d%?", "N", re.sub("[█▉▊▋▌▍▎▏]+", "", output)).split()


class Identities(NamedTuple):
    """PEM files: an authority, and what it has signed."""

    ca: Path
    server: Path
    client: Path
    client_key: Path


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    folder = tmp_path_factory.mktemp("identities")
    files = Identities(*(folder / f"{name}.pem" for name in Identities._fields))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(files.ca)
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(files.server)
    client = authority.issue_cert("client.example")
    client.cert_chain_pems[0].write_to_path(files.client)
    client.private_key_pem.write_to_path(files.client_key)
    return files


@pytest.fixture(scope="module")
def server_with_tokens(
    imagenet_repository: Path, identities: Identities, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    entry = f'[[tokens]]\nname = "page"\nsecret = "{TOKEN}"\npermissions = ["infer"]\n'
    tokens.write_text(entry, encoding="utf-8")
    certificate = ("--tls-certificate", identities.server, "--tls-key", identities.server)
    with served(imagenet_repository, *certificate, "--tokens", tokens) as address:
        yield address.replace("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def server_with_mutual_tls(imagenet_repository: Path, identities: Identities) -> Iterator[str]:
    certificate = ("--tls-certificate", identities.server, "--tls-key", identities.server)
    with served(imagenet_repository, *certificate, "--tls-client-ca", identities.ca) as address:
        yield address.replace("127.0.0.1", "localhost")


@pytest.fixture
def folder(tmp_path: Path, imagenet_repository: Path, identities: Identities) -> Path:
    (tmp_path / "models").symlink_to(imagenet_repository)
    cat, coffee, rocket = (
        Image.fromarray(picture) for picture in (data.chelsea(), data.coffee(), data.rocket())
    )
    cat.save(tmp_path / "cat.jpg", quality=95)
    coffee.save(tmp_path / "coffee.jpg", quality=95)
    for label, picture in {"tabby": cat, "espresso": coffee, "missile": rocket}.items():
        (tmp_path / "photographs" / label).mkdir(parents=True)
        picture.save(tmp_path / "photographs" / label / "1.jpg", quality=95)
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    (tmp_path / "ca.pem").symlink_to(identities.ca)
    (tmp_path / "client.pem").symlink_to(identities.client)
    (tmp_path / "client-key.pem").symlink_to(identities.client_key)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_snippets_run(page: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
    }
    found = programs(page)
    assert found, f"{page.name} shows no program"
    text = "".join(program.source for program in found)
    servers = {
        name: request.getfixturevalue(fixture) for name, fixture in SERVERS.items() if name in text
    }
    for program in found:
        source = program.source
        for name, address in servers.items():
            source = source.replace(name, address)
        command = {
            "python": [sys.executable, "-W", "error", "-c", source],
            "bash": ["bash", "-euo", "pipefail", "-c", source],
        }[program.language]
        run = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        place = f"{page.name}, line {program.line}"
        assert run.returncode == 0, f"{place}:\n{run.stderr}"
        if program.output is not None:
            assert shape(run.stdout) == shape(program.output), f"{place} prints:\n{run.stdout}"
