"""Buckets of S3, Google Cloud Storage and Azure on this machine, and what stands before them."""

import base64
import hashlib
import hmac
import json
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from ...environment import make_environment
from ...once import made_once
from .conftest import free_port, listening

AZURITE = "azurite@3.37.0"
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""Of every Azurite: it is in its documentation, and no secret."""


_S3_CREDENTIALS = (
    "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)
"""Moto reads their form and checks none of them."""


class Middle:
    """An HTTP server that passes requests on, and can cut an answer in its midst.

    Attributes:
        cut: the end of a path whose answers to GET end after their first bytes; none if empty.
        credentials: what is passed on in place of the client's; none if empty.
    """

    def __init__(self, port: int, *, credentials: str = "") -> None:
        self.cut = ""
        self._credentials = credentials
        self._to = port
        middle = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                middle.pass_on(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @contextmanager
    def running(self) -> Iterator[str]:
        """Listen until the block ends; yield the URL."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{self._server.server_address[1]}"
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def pass_on(self, handler: BaseHTTPRequestHandler) -> None:
        """Pass a request on, and its answer back."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        if self._credentials:
            headers["authorization"] = self._credentials
        connection = HTTPConnection("127.0.0.1", self._to, timeout=60)
        try:
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except OSError:
            handler.close_connection = True
            return
        finally:
            connection.close()
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "content-length", "transfer-encoding"}:
                handler.send_header(name, value)
        length = answer.getheader("Content-Length") if handler.command == "HEAD" else len(content)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        if self.cut and handler.command == "GET" and unquote(handler.path).endswith(self.cut):
            handler.wfile.write(content[:10])
            handler.close_connection = True
        else:
            handler.wfile.write(content)


class Cloud:
    """A place in a bucket, the process that keeps it, and the server before that."""

    def __init__(
        self, url: str, process: subprocess.Popen[bytes], middle: Middle, address: str
    ) -> None:
        self.url = url
        self.process = process
        self.middle = middle
        self._address = address

    def post(self, path: str, data: bytes) -> None:
        """Tell the process something beside its protocol."""
        headers = {"Content-Type": "text/plain"}
        told = urllib.request.Request(f"{self._address}{path}", data, headers)  # noqa: S310 - our own
        urllib.request.urlopen(told, timeout=60).close()  # noqa: S310 - our own


Environment = Callable[[str, str], None]
"""Sets a variable of the environment."""


def moto(factory: pytest.TempPathFactory) -> Callable[[int], list[object]]:
    """Return the command of moto's server; its requirements contradict this environment's."""

    def make(folder: Path) -> None:
        make_environment(folder / "venv", "moto[server]>=5")

    server = made_once(factory, "moto", make) / "venv/bin/moto_server"
    return lambda port: [server, "-H", "127.0.0.1", "-p", port]


@contextmanager
def _running(
    command: Callable[[int], list[object]], log: Path, credentials: str = ""
) -> Iterator[tuple[subprocess.Popen[bytes], Middle, str]]:
    """Run the server that `command` gives for a port; yield what stands before it, and its URL."""
    port = free_port()
    middle = Middle(port, credentials=credentials)
    with listening(command(port), port, log) as process, middle.running() as url:
        yield process, middle, url


@contextmanager
def s3(factory: pytest.TempPathFactory, log: Path, setenv: Environment) -> Iterator[Cloud]:
    """Run moto's S3 with a bucket; have the environment name it."""
    with _running(moto(factory), log) as (process, middle, url):
        _put(f"{url}/bucket")
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "s3cret",
        }.items():
            setenv(name, value)
        yield Cloud("s3://bucket/models", process, middle, url)


@contextmanager
def gs(factory: pytest.TempPathFactory, log: Path, setenv: Environment) -> Iterator[Cloud]:
    """Run the client of Google Cloud Storage against moto; have the environment name it.

    No emulator of its XML interface, which the client speaks, is in a package. S3's is the
    same where it lists, reads and writes, but for the header of the credentials.
    """
    with _running(moto(factory), log, _S3_CREDENTIALS) as (process, middle, url):
        _put(f"{url}/bucket")
        account = log.with_name("account.json")
        names = ("client_email", "private_key", "private_key_id")
        told = {"gcs_base_url": url, "disable_oauth": True, **dict.fromkeys(names, "")}
        account.write_text(json.dumps(told), encoding="utf-8")
        setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
        setenv("GOOGLE_ALLOW_HTTP", "true")
        yield Cloud("gs://bucket/models", process, middle, url)


@contextmanager
def az(factory: pytest.TempPathFactory, log: Path, setenv: Environment) -> Iterator[Cloud]:
    """Run Azurite with a container; have the environment name it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Azurite needs npm")

    def make(folder: Path) -> None:
        command = [npm, "install", "--prefix", folder, "--no-audit", "--no-fund", AZURITE]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    azurite = made_once(factory, "azurite", make) / "node_modules/.bin/azurite-blob"
    flags = ("--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--blobPort")
    with _running(lambda port: [azurite, *flags, port], log) as (process, middle, url):
        _put(f"{url}/{ACCOUNT}/bucket?restype=container", _signed())
        for name, value in {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
            "AZURE_STORAGE_ENDPOINT": f"{url}/{ACCOUNT}",
            "AZURE_ALLOW_HTTP": "true",
        }.items():
            setenv(name, value)
        yield Cloud("az://bucket/models", process, middle, url)


CLOUDS = {"s3": s3, "gs": gs, "az": az}


def _put(url: str, headers: dict[str, str] | None = None) -> None:
    make = urllib.request.Request(url, method="PUT", headers=headers or {})  # noqa: S310 - our own
    urllib.request.urlopen(make, timeout=60).close()  # noqa: S310 - our own


def _signed() -> dict[str, str]:
    """Return the headers that make the container: Azure's Shared Key."""
    stamps = {
        "x-ms-date": format_datetime(datetime.now(UTC), usegmt=True),
        "x-ms-version": "2021-08-06",
    }
    lines = [f"{name}:{value}" for name, value in stamps.items()]
    resource = f"/{ACCOUNT}/{ACCOUNT}/bucket\nrestype:container"
    text = "\n".join(["PUT", *[""] * 11, *lines, resource])
    digest = hmac.new(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256).digest()
    return stamps | {"Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"}
