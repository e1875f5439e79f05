"""Against real gRPC servers: certificates, tokens, compression, traces, retries."""

# ruff: noqa: N802 - the protocol names the methods

import re
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import hpack
import pytest
import trustme
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from foveate.status import ErrorStatus, StatusError
from foveate.v1.classifier_service_pb2_grpc import add_ClassifierServiceServicer_to_server
from foveate_client import (
    AsyncClient,
    CallError,
    Client,
    Credentials,
    Retries,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from foveate_client._connection import is_on_this_machine
from foveate_client.cli import main
from foveate_client.testing import FakeTransport

from ..ports import listen
from ..waiting import wait_until
from .conftest import Service

UNAVAILABLE, UNAUTHENTICATED = 14, 16
TOKEN = "correct-horse-battery-staple"  # noqa: S105 - a test's own
ONCE = Retries(attempts=1)


class NotingService(Service):
    """Notes the headers and the peer's certificate of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: list[dict[str, str]] = []
        self.callers: list[list[bytes]] = []

    def _note(self, request, context):
        super()._note(request, context)
        self.headers.append(dict(context.invocation_metadata()))
        self.callers.append(context.auth_context().get("x509_subject_alternative_name", []))

    def ClassifyStream(self, request_iterator, context):
        self._note(None, context)
        return super().ClassifyStream(request_iterator, context)


@dataclass
class Running:
    service: NotingService
    port: int
    address: str


@pytest.fixture
def start():
    """Return a function that starts a server, in the clear or with credentials."""
    servers = []

    def run(
        credentials: grpc.ServerCredentials | None = None, options: list[tuple[str, int]] = ()
    ) -> Running:
        service = NotingService()
        server = grpc.server(ThreadPoolExecutor(max_workers=4), options=options)
        servers.append(server)
        add_ClassifierServiceServicer_to_server(service, server)
        if credentials is None:
            port = listen(server)
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        return Running(service, port, f"localhost:{port}")

    yield run
    for server in servers:
        server.stop(None).wait()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca(authority, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def server_credentials(
    authority: trustme.CA, *names: str, of_clients: bool = False
) -> grpc.ServerCredentials:
    issued = authority.issue_cert(*names)
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    return grpc.ssl_server_credentials(
        [(issued.private_key_pem.bytes(), chain)],
        root_certificates=authority.cert_pem.bytes() if of_clients else None,
        require_client_auth=of_clients,
    )


def test_tls_with_an_authority_of_ones_own(start, authority, ca, coffee):
    running = start(server_credentials(authority, "localhost"))
    with Client(running.address, credentials=Credentials(ca=ca)) as client:
        assert client.classify(coffee).predictions[0].label == "tiger cat"
        assert len(list(client.classify_many([coffee] * 3))) == 3


async def test_tls_under_asyncio_with_the_pem_itself(start, authority, coffee):
    running = start(server_credentials(authority, "localhost"))
    credentials = Credentials(ca=authority.cert_pem.bytes())
    async with AsyncClient(running.address, credentials=credentials) as client:
        assert (await client.classify(coffee)).predictions[0].label == "tiger cat"


def test_a_server_of_another_authority_is_not_trusted(start, authority, coffee):
    running = start(server_credentials(trustme.CA(), "localhost"))
    credentials = Credentials(ca=authority.cert_pem.bytes(), token=TOKEN)
    with (
        Client(running.address, credentials=credentials, retries=ONCE) as client,
        pytest.raises(UnavailableError),
    ):
        client.classify(coffee)
    assert running.service.headers == []


def test_a_certificate_for_another_name_is_refused_unless_the_name_is_given(
    start, authority, ca, coffee
):
    running = start(server_credentials(authority, "models.example"))
    with (
        Client(running.address, credentials=Credentials(ca=ca), retries=ONCE) as client,
        pytest.raises(UnavailableError),
    ):
        client.classify(coffee)
    named = Credentials(ca=ca, server_name="models.example")
    with Client(running.address, credentials=named) as client:
        assert client.classify(coffee).model == "pets"


def test_mutual_tls_shows_who_is_calling(start, authority, ca, coffee, tmp_path):
    running = start(server_credentials(authority, "localhost", of_clients=True))
    issued = authority.issue_cert("camera-7.example")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    credentials = Credentials(ca=ca, cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    with Client(running.address, credentials=credentials) as client:
        client.classify(coffee)
    assert running.service.callers == [[b"camera-7.example"]]
    with (
        Client(running.address, credentials=Credentials(ca=ca), retries=ONCE) as client,
        pytest.raises(UnavailableError),
    ):
        client.classify(coffee)


def test_a_server_that_closes_the_connection_may_want_tls(start, authority, ca, coffee):
    running = start(server_credentials(authority, "127.0.0.1", of_clients=True))
    # Of a name with several addresses gRPC describes any one.
    address = f"127.0.0.1:{running.port}"
    for options in ({}, {"credentials": Credentials(ca=ca)}):
        with (
            Client(address, retries=ONCE, **options) as client,
            pytest.raises(UnavailableError, match=r"may want TLS .* or the client's"),
        ):
            client.classify(coffee)


def test_a_server_without_tls_is_told_as_such(start, ca, coffee):
    running = start()
    with (
        Client(f"127.0.0.1:{running.port}", credentials=Credentials(ca=ca), retries=ONCE) as client,
        pytest.raises(UnavailableError, match="the server does not use TLS on this port"),
    ):
        client.classify(coffee)


def test_a_token_alone_goes_to_this_machine_as_the_command_sends_it(start, coffee):
    running = start()
    credentials = Credentials(token=TOKEN)
    assert credentials.encrypts("models.example:443")
    assert Credentials(token=TOKEN, tls=True).encrypts(running.address)
    assert Credentials(token=TOKEN, ca=b"").encrypts(running.address)
    assert Credentials().encrypts(running.address)
    with Client(running.address, credentials=credentials) as client:
        client.classify(coffee)
    assert [h.get("authorization") for h in running.service.headers] == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "HTTP"])
def test_the_address_of_a_web_page_is_refused_with_the_right_form(scheme, capsys):
    url = f"{scheme}://models.example:50051/"
    with pytest.raises(ValueError, match=r"is a URL; write models\.example:50051"):
        Client(url)
    for command in (["models"], ["health"], ["load", __file__], ["batch", ".", "--out", "t.csv"]):
        assert main([*command, "--address", url]) == 1
        told = capsys.readouterr().err
        assert "is a URL; write models.example:50051" in told
        assert ("with TLS" in told) == (scheme == "https")
        assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "told"),
    [
        # Whose port gRPC would take for 34463.
        ("127.0.0.1:99999", "the limit of a port is 65535"),
        ("[::1]:65536", "the limit of a port is 65535"),
        ("ipv4:127.0.0.1:70000,127.0.0.1:1", "the limit of a port is 65535"),
        (" 127.0.0.1:50051", "without white space"),
        ("127.0.0.1:50051\n", "without white space"),
        ("", "write HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused(address, told):
    with pytest.raises(ValueError, match=told):
        Client(address)


@contextmanager
def answering(status: int):
    """An HTTP/2 proxy that answers every request itself, with a status and no word of gRPC."""
    headers = hpack.Encoder().encode([(":status", str(status)), ("content-type", "text/html")])

    def frame(kind, flags, stream, payload=b""):
        return (
            struct.pack(">I", len(payload))[1:]
            + bytes([kind, flags])
            + struct.pack(">I", stream)
            + payload
        )

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as read:
                connection.sendall(frame(4, 0, 0))
                read.read(24)
                while len(head := read.read(9)) == 9:
                    read.read(int.from_bytes(head[:3]))
                    if head[3] == 4 and not head[4]:
                        connection.sendall(frame(4, 1, 0))
                    if head[3] == 1:
                        stream = int.from_bytes(head[5:])
                        connection.sendall(frame(1, 5, stream, headers))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (413, r"a proxy .* answered HTTP 413 .*: it refuses bodies of this size"),
        (502, r"a proxy .* answered HTTP 502 \(Bad Gateway\): it does not reach the server"),
        (504, r"a proxy .* answered HTTP 504 \(Gateway Timeout\): it waits no longer"),
        (404, r"a proxy .* answered HTTP 404 \(Not Found\): it is no gRPC server"),
    ],
)
async def test_the_answer_of_a_proxy_is_told_as_such(status, told, coffee):
    with answering(status) as address:
        with Client(address, retries=ONCE) as client:
            with pytest.raises(CallError, match=told):
                client.classify(coffee)
            with pytest.raises(CallError, match=told):
                list(client.classify_many([coffee]))
        async with AsyncClient(address, retries=ONCE) as client:
            with pytest.raises(CallError, match=told):
                await client.classify(coffee)


def test_a_token_travels_with_every_call(start, authority, ca, coffee):
    running = start(server_credentials(authority, "localhost"))
    with Client(running.address, credentials=Credentials(ca=ca, token=TOKEN)) as client:
        client.classify(coffee)
        list(client.classify_many([coffee]))
        list(client.models())
        client.model("pets")
    assert [h.get("authorization") for h in running.service.headers] == [f"Bearer {TOKEN}"] * 4


async def test_a_token_travels_with_every_call_under_asyncio(start, authority, ca, coffee):
    running = start(server_credentials(authority, "localhost"))
    async with AsyncClient(running.address, credentials=Credentials(ca=ca, token=TOKEN)) as client:
        await client.classify(coffee)
        assert len([x async for x in client.classify_many([coffee])]) == 1
        assert [x async for x in client.models()] == []
        await client.model("pets")
    assert [h.get("authorization") for h in running.service.headers] == [f"Bearer {TOKEN}"] * 4


def test_a_token_may_change_between_calls(start, coffee):
    running = start()
    tokens = iter(["first", "second"])
    credentials = Credentials(tls=False, token=lambda: next(tokens))
    with Client(running.address, credentials=credentials) as client:
        client.classify(coffee)
        client.classify(coffee)
    assert [h["authorization"] for h in running.service.headers] == [
        "Bearer first",
        "Bearer second",
    ]


def test_a_refused_token_is_an_error_of_its_own(start, coffee):
    running = start()

    def refuse(request):
        raise StatusError(
            ErrorStatus(code=UNAUTHENTICATED, reason="TOKEN_UNKNOWN", message="who are you?")
        )

    running.service.classify = refuse
    with (
        Client(running.address, credentials=Credentials(tls=False, token=TOKEN)) as client,
        pytest.raises(UnauthenticatedError, match="who are you") as caught,
    ):
        client.classify(coffee)
    assert TOKEN not in repr(caught.value)


def test_a_token_is_not_sent_in_the_clear_to_another_machine():
    credentials = Credentials(tls=False, token=TOKEN)
    with pytest.raises(ValueError, match=r"models\.example:443 in the clear") as caught:
        Client("models.example:443", credentials=credentials)
    assert TOKEN not in str(caught.value)
    allowed = Credentials(tls=False, token=TOKEN, plaintext_token=True)
    Client("models.example:443", credentials=allowed).close()


async def test_a_token_is_not_sent_in_the_clear_under_asyncio():
    with pytest.raises(ValueError, match="in the clear"):
        AsyncClient("models.example:443", credentials=Credentials(tls=False, token=TOKEN))


@pytest.fixture
def proxy(monkeypatch) -> str:
    """Set a proxy at which nobody listens, which gRPC takes to this machine as well."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    return "127.0.0.1:1"


@pytest.mark.usefixtures("proxy")
def test_calls_to_this_machine_go_past_the_proxy(start, coffee, authority, ca):
    running, secure = start(), start(server_credentials(authority, "localhost"))
    for options in ({}, {"credentials": Credentials(tls=False, token=TOKEN)}):
        for target in (running.address, f"dns:///localhost:{running.port}"):
            with Client(target, **options) as client:
                client.classify(coffee)
    with Client(secure.address, credentials=Credentials(ca=ca)) as client:
        client.classify(coffee)
    assert (len(running.service.headers), len(secure.service.headers)) == (4, 1)


@pytest.mark.usefixtures("proxy")
async def test_calls_to_this_machine_go_past_the_proxy_under_asyncio(start, coffee):
    running = start()
    async with AsyncClient(running.address) as client:
        await client.classify(coffee)
    assert len(running.service.headers) == 1


def test_calls_to_another_machine_go_through_the_proxy(proxy, coffee):
    with (
        Client("192.0.2.1:50051", retries=ONCE) as client,
        pytest.raises(UnavailableError, match=re.escape(proxy)),
    ):
        client.classify(coffee)


def test_calls_go_in_turn_to_every_address(start, coffee):
    servers = [start(), start()]
    target = "ipv4:" + ",".join(f"127.0.0.1:{running.port}" for running in servers)
    with Client(target) as client:

        def both_have_been_asked() -> bool:
            client.classify(coffee)
            return all(running.service.asked for running in servers)

        # The second connection may be made a little after the first.
        wait_until(both_have_been_asked)
        for running in servers:
            running.service.asked.clear()
        for _ in range(20):
            client.classify(coffee)
    assert [len(running.service.asked) for running in servers] == [10, 10]


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051",
        "LOCALHOST",
        "127.0.0.1:50051",
        "127.8.9.1",
        "[::1]:50051",
        "::1",
        "dns:localhost:50051",
        "dns:///localhost:50051",
        "dns://8.8.8.8/127.0.0.1:50051",
        "ipv4:127.0.0.1:1,127.0.0.1:2",
        "ipv6:[::1]:50051",
        "unix:/run/foveate.sock",
    ],
)
def test_targets_on_this_machine(target):
    assert is_on_this_machine(target)


@pytest.mark.parametrize(
    "target",
    [
        "models.example:443",
        "localhost.example:443",
        "10.0.0.1:50051",
        "0.0.0.0:50051",
        "[2001:db8::1]:50051",
        "dns:///models.example",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "xds:///localhost",
        "127.0.0.1.example:80",
        "",
    ],
)
def test_targets_elsewhere(target):
    assert not is_on_this_machine(target)


def test_secrets_are_in_no_repr():
    credentials = Credentials(cert=b"certificate", key=b"private", token=TOKEN)
    assert TOKEN not in repr(credentials)
    assert "private" not in repr(credentials)
    assert "certificate" in repr(credentials)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"cert": b"x"}, "cert and key go together"),
        ({"key": b"x"}, "cert and key go together"),
        ({"tls": False, "ca": b"x"}, "of no use with tls=False"),
        ({"tls": False, "server_name": "x"}, "of no use with tls=False"),
        ({"token": ""}, "the token must be"),
        ({"token": "with\nline"}, "the token must be"),
    ],
)
def test_credentials_that_contradict_themselves(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        Credentials(**arguments)


def test_a_certificate_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        Client("localhost:1", credentials=Credentials(ca=tmp_path / "missing.pem"))


def test_a_transport_has_a_connection_of_its_own():
    with pytest.raises(TypeError, match="retries: a transport has its own"):
        Client(FakeTransport(), retries=ONCE)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_requests_are_compressed_when_asked(start, coffee, algorithm):
    running = start()
    with Client(running.address, compression=algorithm) as client:
        client.classify(coffee)
    assert running.service.asked[0].encoded == coffee.read_bytes()
    identity_only = start(options=[("grpc.compression_enabled_algorithms_bitset", 1)])
    with Client(identity_only.address) as client:
        client.classify(coffee)
    with (
        Client(identity_only.address, compression=algorithm) as client,
        pytest.raises(UnimplementedError, match=algorithm),
    ):
        client.classify(coffee)


def unavailable(request):
    raise StatusError(ErrorStatus(code=UNAVAILABLE, reason="DRAINING", message="going"))


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_a_call_is_tried_as_often_as_asked(start, coffee, attempts):
    running = start()
    running.service.classify = unavailable
    retries = Retries(attempts=attempts, initial_pause=0.01, max_pause=0.01)
    with Client(running.address, retries=retries) as client, pytest.raises(UnavailableError):
        client.classify(coffee)
    assert len(running.service.asked) == attempts


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"attempts": 0}, "attempts must be from 1 to 5, not 0"),
        ({"attempts": 6}, "attempts must be from 1 to 5, not 6"),
        ({"initial_pause": 0.001}, "initial_pause must be at least 0.01, not 0.001"),
        ({"max_pause": float("inf")}, "max_pause must be at least 0.01"),
        ({"multiplier": 0.5}, "multiplier must be at least 1"),
    ],
)
def test_retries_have_limits(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        Retries(**arguments)


def test_a_call_carries_the_callers_span(start, coffee):
    running = start()
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with Client(running.address) as client:
        with tracer.start_as_current_span("classify the coffee") as span:
            client.classify(coffee)
            list(client.classify_many([coffee]))
        client.classify(coffee)
    context = span.get_span_context()
    expected = (
        f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}"
    )
    first, second, outside = (h.get("traceparent") for h in running.service.headers)
    assert first.rpartition("-")[0] == second.rpartition("-")[0] == expected
    assert outside is None


async def test_a_call_carries_the_callers_span_under_asyncio(start, coffee):
    running = start()
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    async with AsyncClient(running.address) as client:
        with tracer.start_as_current_span("classify the coffee") as span:
            await client.classify(coffee)
    (headers,) = running.service.headers
    assert trace.format_trace_id(span.get_span_context().trace_id) in headers["traceparent"]


def test_the_command_shows_a_certificate_and_a_token(start, authority, ca, coffee, tmp_path):
    running = start(server_credentials(authority, "localhost", of_clients=True))
    issued = authority.issue_cert("camera-7.example")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "camera.pem")
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    code = main(
        [
            *("classify", str(coffee), "--address", running.address, "--ca", str(ca)),
            *("--cert", str(tmp_path / "camera.pem"), "--key", str(tmp_path / "camera.pem")),
            *("--token-file", str(tmp_path / "token")),
        ]
    )
    assert code == 0
    assert running.service.headers[0]["authorization"] == f"Bearer {TOKEN}"
    assert running.service.callers == [[b"camera-7.example"]]


def test_the_command_takes_a_token_from_the_environment(start, monkeypatch, capsys):
    running = start()
    monkeypatch.setenv("FOVEATE_TOKEN", TOKEN)
    assert main(["models", "--address", running.address]) == 0
    assert running.service.headers[0]["authorization"] == f"Bearer {TOKEN}"
    assert main(["models", "--address", "models.example:443"]) == 1
    said = capsys.readouterr().err
    assert "models.example:443 in the clear; use TLS" in said
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--ca", "missing.pem"], "cannot read missing.pem: No such file"),
        (["--token-file", "missing"], "cannot read missing: No such file"),
        (["--cert", "cert.pem"], "cert and key go together"),
        (["--key", "key.pem"], "cert and key go together"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_credentials(flags, complaint, capsys):
    assert main(["models", "--address", "localhost:1", *flags]) == 1
    assert complaint in capsys.readouterr().err


async def test_a_call_names_its_model_in_its_headers_where_they_can_hold_it(start, coffee):
    running = start()
    asked = ("pets", "", "Kätzchen")
    with Client(running.address) as client:
        for model in asked:
            client.classify(coffee, model=model)
    async with AsyncClient(running.address) as client:
        for model in asked:
            await client.classify(coffee, model=model)
    assert [headers.get("x-model") for headers in running.service.headers] == [
        "pets",
        None,
        None,
    ] * 2
    assert [request.model for request in running.service.asked] == [*asked] * 2
