import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from foveate_client.commands import health

from ..conftest import FOVEATE, served


@pytest.fixture
def unused() -> str:
    """Return an address at which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


@pytest.mark.parametrize("service", ["", "foveate.v1.ClassifierService/efficientnet_lite0"])
def test_a_server_and_a_model_serve(imagenet_server, capsys, service):
    assert health.main([service, "--address", imagenet_server]) == 0
    assert capsys.readouterr().out == "SERVING\n"


def test_no_proxy_is_asked(imagenet_server, capsys, monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    # The second leads to this machine as well, but is no loopback address.
    for address in (imagenet_server, imagenet_server.replace("127.0.0.1", "0.0.0.0")):  # noqa: S104
        assert health.main(["--address", address]) == 0
        assert capsys.readouterr().out == "SERVING\n"


def test_a_model_that_is_unknown_fails(imagenet_server, capsys):
    arguments = ["foveate.v1.ClassifierService/nobody", "--address", imagenet_server]
    assert health.main(arguments) == 1
    assert "NOT_FOUND" in capsys.readouterr().err


def test_an_address_without_a_server_fails(unused, capsys):
    assert health.main(["--address", unused]) == 1
    told = capsys.readouterr().err
    assert "UNAVAILABLE" in told
    assert "TLS" not in told


def test_waiting_ends_at_the_limit(unused, capsys):
    assert health.main(["--address", unused, "--wait", "0.3"]) == 1
    assert "DEADLINE_EXCEEDED" in capsys.readouterr().err


def test_a_server_that_starts_is_waited_for(imagenet_repository, unused):
    command = [FOVEATE, "health", "--address", unused, "--wait", "120"]
    serve = [FOVEATE, "serve", "--repository", imagenet_repository, "--address", unused]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        with subprocess.Popen(serve, stdout=subprocess.DEVNULL) as server:
            assert waiting.communicate()[0] == "SERVING\n"
            server.terminate()
        assert waiting.returncode == 0


def test_a_certificate_may_have_another_name(
    imagenet_repository: Path, tmp_path: Path, capsys, monkeypatch
):
    authority = trustme.CA()
    ca, server = tmp_path / "ca.pem", tmp_path / "server.pem"
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("models.example").private_key_and_cert_chain_pem.write_to_path(server)
    monkeypatch.setenv("FOVEATE_TOKEN", "not-needed-for-this")
    with served(imagenet_repository, "--tls-certificate", server, "--tls-key", server) as address:
        arguments = ["--address", address, "--ca", str(ca)]
        assert health.main(arguments) == 1
        assert "UNAVAILABLE" in capsys.readouterr().err
        assert health.main(["--address", address]) == 1
        assert "the server may want TLS (--ca" in capsys.readouterr().err
        assert health.main([*arguments, "--server-name", "models.example"]) == 0


def test_it_starts_without_the_engines():
    code = "import sys, foveate_client.commands.health; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"onnxruntime", "pydantic", "torch"} & set(loaded)
