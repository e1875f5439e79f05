"""`--http-address`: a real server, asked by curl and by sockets."""

import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import numpy as np
import pytest
import trustme
from PIL import Image

from ...conftest import FOVEATE
from ...environment import make_environment
from ...waiting import wait_until
from .conftest import http_address

PATH = "/v1/models/colours:classify"


def host_and_port(server) -> tuple[str, int]:
    host, _, port = http_address(server).rpartition(":")
    return host, int(port)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    Image.fromarray(pixels).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def curl(*arguments: object) -> bytes:
    if shutil.which("curl") is None:
        pytest.fail("curl is not installed")
    return subprocess.run(
        ["curl", "--silent", "--show-error", *map(str, arguments)], check=True, capture_output=True
    ).stdout


@pytest.fixture(scope="module")
def server(start_once: Callable):
    return start_once(
        *("--http-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"),
        *("--max-message-bytes", 100_000),
    )


def test_curl_as_it_is_typed(server, picture: Path, tmp_path: Path) -> None:
    url = f"http://{http_address(server)}{PATH}"
    found = json.loads(curl("--data-binary", f"@{picture}", url))
    assert found["predictions"][0]["label"] == "red"
    found = json.loads(curl("--form", f"image=@{picture}", f"{url}?cam=true"))
    assert found["cams"][0]["maximum"] == 1.0
    overlay = tmp_path / "overlay.png"
    curl("-H", "Accept: image/png", "--data-binary", f"@{picture}", "-o", overlay, url)
    with Image.open(overlay) as opened:
        assert opened.size == (8, 8)


@pytest.mark.network
def test_schemathesis_finds_nothing_that_the_description_does_not_say(
    server, tmp_path: Path
) -> None:
    python = make_environment(tmp_path / "venv", "schemathesis==4.32.5")
    (tmp_path / "schemathesis.toml").write_text(
        '[parameters]\n"path.model" = "colours"\n"path.version" = "1"\n', encoding="utf-8"
    )
    checks = (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "unsupported_method",
        "allow_header_conformance",
    )
    done = subprocess.run(
        [
            *(python.with_name("schemathesis"), "run"),
            f"http://{http_address(server)}/openapi.json",
            *("--phases", "coverage,fuzzing", "--max-examples", "10", "--seed", "0"),
            *("--checks", ",".join(checks)),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert "Tested: 19" in done.stdout


def test_the_ready_line_names_grpc_alone(server) -> None:
    assert server.address != http_address(server)
    server.classify()


def test_the_metrics_are_those_of_grpc(server) -> None:
    with urllib.request.urlopen(f"http://{http_address(server)}/v2/models/colours") as answer:
        assert json.load(answer)["name"] == "colours"
    labels = {"method": "/inference.GRPCInferenceService/ModelMetadata", "code": "OK"}
    assert server.metrics()["foveate_calls_total", frozenset(labels.items())] >= 1


def test_a_refusal_reaches_a_client_that_is_sending(server) -> None:
    connection = HTTPConnection(*host_and_port(server), timeout=60)
    connection.request("POST", PATH, body=bytes(150_000))
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.load(answer)["reason"] == "BODY_TOO_LARGE"
    # The connection serves on.
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().status == 200
    connection.close()


def test_bad_http_ends_the_connection_alone(server) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET /" + b"x" * 100_000):
        with socket.create_connection(host_and_port(server), timeout=60) as raw:
            raw.sendall(sent)
            assert raw.recv(1000).startswith(b"HTTP/1.1 400")
    headers = b"".join(b"x-%d: y\r\n" % number for number in range(20_000))
    with socket.create_connection(host_and_port(server), timeout=60) as raw:
        raw.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + headers)
        assert raw.recv(1000).startswith(b"HTTP/1.1 400")
    assert server.process.poll() is None


def test_two_requests_in_one_packet_are_both_answered(server) -> None:
    one = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    with socket.create_connection(host_and_port(server), timeout=60) as raw:
        raw.sendall(one + one.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        answer = b"".join(iter(lambda: raw.recv(1000), b""))
    assert answer.count(b"HTTP/1.1 200") == 2


def test_tls_and_a_renewed_certificate(
    start: Callable, tls, authority: trustme.CA, picture: Path
) -> None:
    server = start(*tls.flags, "--http-address", "127.0.0.1:0")
    host, port = host_and_port(server)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2", "http/1.1"])

    def serial() -> str:
        connection = HTTPSConnection(host, port, timeout=60, context=context)
        connection.request("POST", PATH, body=picture.read_bytes())
        assert connection.sock.selected_alpn_protocol() == "http/1.1"
        found = connection.sock.getpeercert()["serialNumber"]
        assert connection.getresponse().status == 200
        connection.close()
        return found

    first = serial()
    tls.write(authority.issue_cert("localhost", "127.0.0.1"))
    assert serial() != first
    other = ssl.create_default_context()
    with pytest.raises(ssl.SSLError):
        HTTPSConnection(host, port, timeout=60, context=other).connect()
    assert server.stop() == 0


def test_a_client_certificate_is_asked_for(
    start: Callable, tls, authority: trustme.CA, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    server = start(*tls.flags, "--tls-client-ca", ca, "--http-address", "127.0.0.1:0")
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def status() -> int:
        made = HTTPSConnection(*host_and_port(server), timeout=60, context=context)
        with closing(made) as connection:
            connection.request("GET", "/v2")
            with connection.getresponse() as answer:
                return answer.status

    with pytest.raises(OSError, match=r"certificate|reset|EOF|Broken|closed"):
        status()
    authority.issue_cert("client").configure_cert(context)
    assert status() == 200


def test_a_stop_answers_what_is_in_flight(start: Callable, picture: Path) -> None:
    """The request's body ends only after the server has been told to stop."""
    server = start("--http-address", "127.0.0.1:0", "--shutdown-delay", 2)
    body = picture.read_bytes()
    sending = HTTPConnection(*host_and_port(server), timeout=60)
    sending.putrequest("POST", PATH)
    sending.putheader("content-length", str(len(body)))
    sending.endheaders(body[:-1])
    server.process.send_signal(signal.SIGTERM)

    url = f"http://{http_address(server)}/v2/health/ready"

    def status() -> bytes:
        return curl("--output", "/dev/null", "--write-out", "%{http_code}", url)

    wait_until(lambda: status() == b"400")
    # Nothing listens any more, and the request is still answered.
    wait_until(lambda: not listens(host_and_port(server)))
    sending.send(body[-1:])
    answer = sending.getresponse()
    assert answer.status == 200
    assert json.load(answer)["predictions"][0]["label"] == "red"
    sending.close()
    assert server.process.wait(timeout=60) == 0


def listens(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place, timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_stop_does_not_wait_for_ever(start: Callable) -> None:
    server = start(
        *("--http-address", "127.0.0.1:0", "--shutdown-delay", 0, "--shutdown-timeout", 0.5)
    )
    idle = socket.create_connection(host_and_port(server), timeout=60)
    hanging = socket.create_connection(host_and_port(server), timeout=60)
    hanging.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx".encode())
    wait_until(lambda: listens(host_and_port(server)))
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 30  # of the 60 that the body has
    assert idle.recv(10) == b""
    for connection in (idle, hanging):
        connection.close()


def test_workers_share_the_port(start: Callable, picture: Path) -> None:
    server = start("--workers", 2, "--http-address", "127.0.0.1:0")
    text = server.log.read_text(encoding="utf-8")
    assert len(set(re.findall(r"HTTP on http://[0-9.]+:(\d+)", text))) == 1
    for _ in range(8):
        connection = HTTPConnection(*host_and_port(server), timeout=60)
        connection.request("POST", PATH, body=picture.read_bytes())
        assert connection.getresponse().status == 200
        connection.close()
    assert server.stop() == 0


def test_an_address_in_use_is_told_in_a_line(server, repository: Path) -> None:
    done = subprocess.run(
        [
            *(FOVEATE, "serve", "--repository", repository, "--address", "127.0.0.1:0"),
            *("--http-address", http_address(server), "--log-level", "error"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"foveate serve: cannot listen on {http_address(server)}: Address already in use\n"
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_the_extra_that_is_missing_is_named(repository: Path, workers: int) -> None:
    code = (
        "import sys\n"
        "for name in ('starlette', 'uvicorn'): sys.modules[name] = None\n"
        "from foveate_serve.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", code, "--repository", repository, "--log-level", "error"),
            *("--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"),
            *("--workers", str(workers)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r'foveate serve: http_address: it needs \w+: pip install "foveate-serve\[http\]"\n',
        done.stderr,
    )


def test_without_the_option_no_package_of_http_is_imported(repository: Path) -> None:
    code = (
        "import sys\n"
        "from foveate_serve.process import Process\n"
        "from foveate_serve.settings import Settings\n"
        "Process(Settings(repository=sys.argv[1]))\n"
        "print(sorted({'starlette', 'uvicorn', 'h11'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, repository], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
