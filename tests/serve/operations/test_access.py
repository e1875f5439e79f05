"""Tokens: every method of every service without one, with each, and with an unknown one."""

from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from foveate.inference import open_inference_pb2
from foveate.v1 import classifier_service_pb2, repository_service_pb2
from foveate_serve.access import Permission, read_tokens
from foveate_serve.rpc.security import permission_of
from foveate_serve.settings import SettingsError

SECRETS = {name: f"{name}-0123456789abcdef" for name in ("infer", "admin", "metrics", "all")}
UNKNOWN = "unknown-0123456789abcdef"

OPEN = {
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
    "/inference.GRPCInferenceService/ModelReady",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
}
ADMIN = {
    "/foveate.v1.RepositoryService/LoadModel",
    "/foveate.v1.RepositoryService/ReloadModel",
    "/foveate.v1.RepositoryService/SetVersionLabels",
    "/foveate.v1.RepositoryService/UnloadModel",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
    "/grpc.channelz.v1.Channelz/GetServers",
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("access") / "tokens.toml"
    parts = [
        f'[[tokens]]\nname = "{name}"\nsecret = "{SECRETS[name]}"\npermissions = ["{name}"]\n'
        for name in ("infer", "admin", "metrics")
    ]
    digest = sha256(SECRETS["all"].encode()).hexdigest()
    parts.append(
        f'[[tokens]]\nname = "all"\nsha256 = "{digest}"\n'
        'permissions = ["infer", "admin", "metrics"]\n'
    )
    file.write_text("".join(parts), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def server(start_once: Callable, tokens: Path):
    return start_once(
        *("--tokens", tokens, "--metrics-address", "127.0.0.1:0", "--log-format", "json"),
        *("--log-requests", "--channelz", "--log-level", "debug"),
    )


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {SECRETS.get(name, UNKNOWN)}"),) if name else ()


METHODS = {
    f"/{service.full_name}/{method.name}"
    for file in (
        health_pb2.DESCRIPTOR,
        classifier_service_pb2.DESCRIPTOR,
        repository_service_pb2.DESCRIPTOR,
        open_inference_pb2.DESCRIPTOR,
    )
    for service in file.services_by_name.values()
    for method in service.methods
}


def classify(server, token: str) -> None:
    server.classify(metadata=bearer(token))


def outcome(channel: grpc.Channel, method: str, token: str) -> grpc.RpcError | None:
    """Call a method with an empty message, and return its error."""
    # One message, no matter what kind of method: it is answered or refused.
    call = channel.stream_stream(method)(iter([b""]), metadata=bearer(token), timeout=60)
    try:
        next(call, None)
        call.cancel()
    except grpc.RpcError as error:
        return error
    return None


@pytest.mark.parametrize("token", ["", "unknown", "infer", "admin", "metrics", "all"])
def test_a_method_is_open_to_those_who_may_call_it(server, error_of: Callable, token: str) -> None:
    assert METHODS > OPEN
    with server.channel() as channel:
        for method in sorted(METHODS | ADMIN):
            permission = "" if method in OPEN else "admin" if method in ADMIN else "infer"
            error = outcome(channel, method, token)
            if token in {permission, "all"} or not permission:
                refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
                # An admin's call goes on to RepositoryService, which is off here.
                disabled = error is not None and error.code() in refused
                assert not disabled or error_of(error).reason == "ADMIN_DISABLED", method
            elif token in {"", "unknown"}:
                assert error is not None, method
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                assert error_of(error).reason == (f"TOKEN_{'INVALID' if token else 'MISSING'}")
            else:
                assert error is not None, method
                assert error.code() is grpc.StatusCode.PERMISSION_DENIED
                assert error_of(error).metadata == {"permission": permission}


def test_the_metrics_port_asks_for_its_permission_and_leaves_the_probes_open(server) -> None:
    for path in ("/healthz", "/readyz"):
        assert server.get(path)[0] is HTTPStatus.OK
    for path in ("/", "/metrics"):
        assert server.get(path)[0] is HTTPStatus.UNAUTHORIZED
        assert server.get(path, UNKNOWN)[0] is HTTPStatus.UNAUTHORIZED
        assert server.get(path, SECRETS["infer"])[0] is HTTPStatus.FORBIDDEN
        assert server.get(path, SECRETS["metrics"])[0] is HTTPStatus.OK


def test_a_token_gets_its_answer_and_stands_in_no_log(server) -> None:
    classify(server, "infer")
    with pytest.raises(grpc.RpcError):
        classify(server, "unknown")
    assert server.get("/metrics", SECRETS["metrics"])[0] is HTTPStatus.OK
    page = server.get("/", SECRETS["metrics"])[1]
    log = server.log.read_text(encoding="utf-8")
    for secret in (*SECRETS.values(), UNKNOWN):
        assert secret not in log
        assert secret not in page
    lines = [line for line in server.log_lines() if line.get("method", "").endswith("/Classify")]
    assert [(line["code"], line.get("caller")) for line in lines[-2:]] == [
        ("OK", "infer"),
        ("UNAUTHENTICATED", None),
    ]


def test_one_token_of_the_environment_may_classify(
    start: Callable, monkeypatch: pytest.MonkeyPatch, error_of: Callable
) -> None:
    monkeypatch.setenv("FOVEATE_SERVE_TOKEN", SECRETS["infer"])
    server = start()
    classify(server, "infer")
    with pytest.raises(grpc.RpcError) as raised:
        classify(server, "")
    assert error_of(raised.value).reason == "TOKEN_MISSING"


def test_what_nobody_thought_of_needs_the_most() -> None:
    assert permission_of("/some.other.Service/Method") is Permission.ADMIN
    assert permission_of("nonsense") is Permission.ADMIN


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tokens = []", "tokens: List should have at least 1 item"),
        ('[[tokens]]\nname = "a"\npermissions = ["infer"]', "either secret or sha256"),
        ('[[tokens]]\nname = "a"\nsecret = "hush"\npermissions = ["infer"]', "secret: "),
        ('[[tokens]]\nname = "a"\nsha256 = "hush"\npermissions = ["infer"]', "sha256: "),
        (
            '[[tokens]]\nname = "a"\nsecret = "hush-0123456789ab"\npermissions = ["hush"]',
            "permissions",
        ),
        ('secret = "hush', "not a TOML file"),
    ],
)
def test_a_bad_file_is_refused_without_its_secrets(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "tokens.toml").write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=message) as raised:
        read_tokens(tmp_path / "tokens.toml")
    assert "hush" not in str(raised.value)
