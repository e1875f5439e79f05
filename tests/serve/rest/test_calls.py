"""What every request passes: tokens, load shedding, ids, bodies, errors and observers."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from google.rpc.code_pb2 import Code

from foveate.status import ErrorStatus
from foveate_serve.errors import EngineError
from foveate_serve.rest import bodies
from foveate_serve.rest.errors import STATUSES, http_status
from foveate_serve.rpc.errors import CODES

PATH = "/v1/models/colours:classify"


def test_every_code_of_the_products_errors_has_a_status() -> None:
    assert set(CODES.values()) <= set(STATUSES)
    told = ErrorStatus(code=Code.INVALID_ARGUMENT, reason="IMAGE_TOO_LARGE", message="")
    assert http_status(told) == 413
    assert http_status(ErrorStatus(code=Code.DATA_LOSS, reason="X", message="")) == 500


async def test_tokens_and_what_each_may_do(serve, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(
        '[[tokens]]\nname = "a"\nsecret = "infer-0123456789abcdef"\npermissions = ["infer"]\n'
    )
    client: httpx2.AsyncClient = await serve(tokens=file, admin=True)
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/colours/ready"):
        assert (await client.get(path)).status_code == 200
    answer = await client.get("/v2")
    assert (answer.status_code, answer.json()["reason"]) == (401, "TOKEN_MISSING")
    assert answer.headers["www-authenticate"] == "Bearer"
    good = {"authorization": "Bearer infer-0123456789abcdef"}
    assert (await client.get("/v2", headers=good)).status_code == 200
    bad = {"authorization": "Bearer other-0123456789abcdef"}
    assert (await client.post(PATH, headers=bad)).json()["reason"] == "TOKEN_INVALID"
    answer = await client.post("/v2/repository/models/colours/unload", headers=good)
    assert (answer.status_code, answer.json()["reason"]) == (403, "PERMISSION_MISSING")


async def test_a_request_id_is_echoed_or_made(client) -> None:
    answer = await client.get("/v2", headers={"x-request-id": "my-id"})
    assert answer.headers["x-request-id"] == "my-id"
    for bad in ("x" * 129, "a b"):
        answer = await client.post(PATH, headers={"x-request-id": bad})
        assert answer.status_code == 400
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])


async def test_a_full_queue_says_when_to_try_again(client, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = client.process._engine
    (loaded,) = engine.repository.serving()
    monkeypatch.setattr(type(loaded.batcher), "full", True)
    engine.overloaded = True
    answer = await client.post(PATH, content=unread())
    assert (answer.status_code, answer.json()["reason"]) == (429, "QUEUE_FULL")
    assert int(answer.headers["retry-after"]) >= 1
    # Another model's queue is not full.
    answer = await client.post("/v1/models/x:classify", content=b"x")
    assert answer.status_code == 404


async def unread() -> AsyncIterator[bytes]:
    """Yield a body that must not be read."""
    raise AssertionError("the body was read")
    yield b""


async def test_a_body_is_bounded_by_its_length_and_as_it_is_read(serve) -> None:
    client = await serve(max_message_bytes=1000)
    answer = await client.post(PATH, content=unread(), headers={"content-length": "1001"})
    assert (answer.status_code, answer.json()["reason"]) == (413, "BODY_TOO_LARGE")
    read = []

    async def chunks() -> AsyncIterator[bytes]:
        for index in range(100):
            read.append(index)
            yield bytes(100)

    answer = await client.post(PATH, content=chunks())
    assert (answer.status_code, answer.json()["reason"]) == (413, "BODY_TOO_LARGE")
    assert len(read) == 11
    assert "1000" in answer.json()["error"]


async def test_the_bodies_that_are_read_together_are_bounded(serve) -> None:
    client = await serve(max_request_bytes=1000)
    reading, going_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(800)
        reading.set()
        await going_on.wait()
        yield bytes(100)

    first = asyncio.create_task(client.post(PATH, content=slow()))
    await reading.wait()
    answer = await client.post(PATH, content=bytes(300))
    assert (answer.status_code, answer.json()["reason"]) == (429, "TOO_MANY_BYTES")
    going_on.set()
    assert (await first).json()["reason"] == "IMAGE_UNSUPPORTED"
    # What was read is no longer held.
    assert (await client.post(PATH, content=bytes(900))).json()["reason"] == "IMAGE_UNSUPPORTED"


async def test_a_body_that_does_not_go_on_gives_way_to_another(
    serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "STALLED_SECONDS", 0.0)
    client = await serve(max_request_bytes=1000)
    reading = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield bytes(800)
        reading.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(client.post(PATH, content=stalled()))
    await reading.wait()
    # Nobody else is refused meanwhile, and the bytes are free again.
    for _ in range(3):
        answer = await client.post(PATH, content=bytes(900))
        assert answer.json()["reason"] == "IMAGE_UNSUPPORTED"
    answer = await first
    assert (answer.status_code, answer.json()["reason"]) == (429, "TOO_MANY_BYTES")


async def test_a_slow_body_is_given_up(client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.01)

    async def never() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    answer = await client.post(PATH, content=never())
    assert (answer.status_code, answer.json()["reason"]) == (408, "BODY_TOO_SLOW")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x" * 500])
async def test_compressed_bodies_are_refused(client, encoding: str) -> None:
    answer = await client.post(PATH, content=unread(), headers={"content-encoding": encoding})
    told = answer.json()
    assert (answer.status_code, told["reason"]) == (415, "CONTENT_ENCODING_UNSUPPORTED")
    assert len(told["error"]) < 300


async def test_paths_and_methods_that_there_are_not(client) -> None:
    answer = await client.get("/v3/" + "x" * 500)
    assert (answer.status_code, answer.json()["reason"]) == (404, "PATH_UNKNOWN")
    assert len(answer.json()["error"]) < 300
    answer = await client.get(PATH)
    assert (answer.status_code, answer.json()["reason"]) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "POST"


async def test_an_unforeseen_error_keeps_its_text_back(
    client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for error, reason in ((KeyError("/secret"), "INTERNAL"), (EngineError(), "ENGINE_FAILED")):

        async def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(client.process._engine, "classify", fail)
        answer = await client.post(PATH, content=b"x")
        assert (answer.status_code, answer.json()["reason"]) == (500, reason)
        assert "/secret" not in answer.text
    assert "/secret" in caplog.text


async def test_metrics_count_the_method_that_a_route_stands_for(serve) -> None:
    client = await serve(metrics_address="127.0.0.1:0", log_requests=True)
    await client.post(PATH, content=b"x")
    await client.get("/v2")
    samples = {
        (sample.labels["method"], sample.labels["code"]): sample.value
        for metric in client.process._metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "foveate_calls_total"
    }
    assert samples == {
        ("/foveate.v1.ClassifierService/Classify", "INVALID_ARGUMENT"): 1.0,
        ("/inference.GRPCInferenceService/ServerMetadata", "OK"): 1.0,
    }


async def test_a_client_that_goes_away_cancels_its_request(
    client, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(client.process._engine, "classify", hang)
    messages: asyncio.Queue = asyncio.Queue()
    await messages.put({"type": "http.request", "body": b"x", "more_body": False})
    sent = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    running = asyncio.create_task(client._transport.app(scope, messages.get, send))
    await started.wait()
    await messages.put({"type": "http.disconnect"})
    await running
    await cancelled.wait()
    assert sent[0]["status"] == 499
