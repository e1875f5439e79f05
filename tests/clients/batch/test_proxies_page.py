"""The page on proxies: its nginx carries a batch, and tells of a server that is gone."""

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from foveate_client import Client, Retries, UnavailableError

from ...conftest import served
from ...waiting import wait_until

PAGE = Path(__file__).parents[3] / "docs" / "serving" / "proxies.md"
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"


@contextmanager
def nginx(folder: Path, configuration: str) -> Iterator[None]:
    """Run nginx with the servers of a configuration."""
    paths = "".join(
        f"{name}_temp_path {folder / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid;\nevents {{}}\nhttp {{ access_log off;\n"
        f"{paths}{configuration}\n}}\n",
        encoding="utf-8",
    )
    command = [NGINX, "-p", folder, "-e", folder / "log", "-c", folder / "nginx.conf"]
    with subprocess.Popen(command) as process:
        try:
            wait_until((folder / "pid").exists)
            yield
        finally:
            process.terminate()


@pytest.mark.skipif(not Path(NGINX).exists(), reason="nginx is not installed")
def test_the_configuration_of_nginx(run, repository, folder, tmp_path):
    (configuration,) = re.findall(
        r"```nginx\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    # Bodies above the megabyte that nginx refuses by default.
    pictures = [picture for picture in sorted(folder.rglob("*.png")) for _ in range(40)]
    large = tmp_path / "large"
    large.mkdir()
    for number, picture in enumerate(pictures):
        (large / f"{number:04}.png").write_bytes(picture.read_bytes())
    assert sum(path.stat().st_size for path in large.iterdir()) > 2**20
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"127.0.0.1:{free.getsockname()[1]}"
    with served(repository) as address:
        adapted = configuration.replace("127.0.0.1:50051", address)
        with nginx(tmp_path, adapted.replace("127.0.0.1:8443", place)):
            out = tmp_path / "results.csv"
            assert run(large, "--out", out, source=("--address", place))[0] == 0
            assert len(out.read_text(encoding="utf-8").splitlines()) == 1 + len(pictures)
    with (
        nginx(tmp_path, adapted.replace("127.0.0.1:8443", place)),
        Client(place, retries=Retries(attempts=1)) as client,
        pytest.raises(UnavailableError, match="the proxy does not reach the server"),
    ):
        client.model("colours")
