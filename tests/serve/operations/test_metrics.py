"""The metrics port: its numbers are those of the requests made, and its pages hold no surprise."""

import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path

import grpc
import pytest

from foveate.v1.classifier_service_pb2 import ClassifyRequest, ClassifyStreamRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_runtime.backends.registry import create_runner
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.errors import OverloadedError
from foveate_serve.observe.known_versions import FORGET_SECONDS
from foveate_serve.observe.metrics import Metrics
from foveate_serve.observer import BatchRun
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import Model, Version
from foveate_serve.statistics import Statistics

from ...conftest import BOTH
from ...waiting import wait_until

COLOURS = {"model": "colours", "version": "1"}


def value(samples: dict, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def in_flight(samples: dict) -> float:
    method = "/foveate.v1.ClassifierService/Classify"
    return value(samples, "foveate_calls_in_flight", method=method)


@pytest.fixture
def server(start: Callable):
    # Batches gather for a moment, so that several pictures ride in some of them.
    return start("--metrics-address", "127.0.0.1:0", "--max-batch", "4", "--max-delay", "0.1")


def test_the_numbers_are_those_of_the_requests_made(server, picture: ClassifyRequest) -> None:
    good, bad = 24, 3
    with server.channel() as channel:
        classify = ClassifierServiceStub(channel).Classify
        with ThreadPoolExecutor(8) as threads:
            picture = ClassifyRequest(timing=True, model=picture.model, raw=picture.raw)
            answers = list(threads.map(lambda _: classify(picture, timeout=60), range(good)))
        for request in [
            *[ClassifyRequest(model="colours", encoded=b"no picture")] * bad,
            ClassifyRequest(model="<script>", encoded=b"x"),
        ]:
            with pytest.raises(grpc.RpcError):
                classify(request, timeout=60)
        late = classify.future(picture, timeout=0.01)
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        answers.append(classify(picture, timeout=60))
        # A call ends after its answer has left.
        wait_until(lambda: in_flight(server.metrics()) == 0)
        samples = server.metrics()

    count = lambda name, **labels: value(samples, name, **COLOURS, **labels)  # noqa: E731
    assert count("foveate_requests_total", code="OK") == good + 1
    assert count("foveate_requests_total", code="INVALID_ARGUMENT") == bad
    assert value(samples, "foveate_requests_total", model="", version="", code="NOT_FOUND") == 1
    assert count("foveate_requests_in_flight") == 0
    assert count("foveate_requests_waiting") == 0
    assert count("foveate_model_ready") == 1
    for stage in ("request", "decode", "queue", "infer", "encode"):
        assert count(f"foveate_{stage}_seconds_count") == good + 1
        assert count(f"foveate_{stage}_seconds_bucket", le="+Inf") == good + 1
    measured = sum(answer.timing.total.ToNanoseconds() for answer in answers) / 1e9
    assert count("foveate_request_seconds_sum") == pytest.approx(measured, rel=1e-3)

    # Each picture of a batch of n is a 1/n of it. The late one may have run, too.
    batches = sum(1 / answer.timing.batch_size for answer in answers)
    assert batches - 1e-6 <= count("foveate_batch_size_count") <= batches + 1 + 1e-6
    assert good + 1 <= count("foveate_batch_size_sum") <= good + 2
    assert count("foveate_batch_size_bucket", le="1.0") < count("foveate_batch_size_count")
    method = {"method": "/foveate.v1.ClassifierService/Classify"}
    assert value(samples, "foveate_calls_total", **method, code="INVALID_ARGUMENT") == bad
    assert value(samples, "foveate_calls_total", **method, code="OK") == good + 1

    # A dashboard for Triton reads the same numbers.
    assert count("nv_inference_request_success") == good + 1
    assert count("nv_inference_count") == count("foveate_batch_size_sum")
    assert count("nv_inference_exec_count") == count("foveate_batch_size_count")
    assert count("nv_inference_pending_request_count") == 0
    assert count("nv_model_load_duration_secs") == count("foveate_model_load_seconds") > 0
    assert count("nv_inference_request_failure", reason="OTHER") >= bad
    assert count("nv_inference_request_duration_us") == pytest.approx(
        1e6 * count("foveate_request_seconds_sum")
    )
    stages = sum(
        count(f"nv_inference_{stage}_duration_us")
        for stage in ("queue", "compute_input", "compute_infer", "compute_output")
    )
    assert stages <= count("nv_inference_request_duration_us")
    assert not [labels for _, labels in samples if ("model", "<script>") in labels]


def test_requests_for_an_unloaded_version_carry_its_name(
    start: Callable, write_bundle: Callable, picture: ClassifyRequest
) -> None:
    write_bundle(version=1)
    repository = write_bundle(version=2).parents[1]
    server = start("--metrics-address", "127.0.0.1:0", repository=repository)
    unloaded = ClassifyRequest(model="colours", version="1", raw=picture.raw)
    with server.channel() as channel, pytest.raises(grpc.RpcError):
        ClassifierServiceStub(channel).Classify(unloaded, timeout=60)
    samples = server.metrics()
    code = {"code": "FAILED_PRECONDITION"}
    assert value(samples, "foveate_requests_total", **COLOURS, **code) == 1
    assert value(samples, "foveate_requests_in_flight", **COLOURS) == 0


def test_the_pictures_of_a_stream_count_one_by_one(server, picture: ClassifyRequest) -> None:
    bad = ClassifyRequest(model="colours", encoded=b"no picture")
    requests = [ClassifyStreamRequest(request=request) for request in (picture, bad, picture)]
    with server.channel() as channel:
        answers = list(ClassifierServiceStub(channel).ClassifyStream(iter(requests), timeout=60))
    assert [answer.HasField("response") for answer in answers] == [True, False, True]
    samples = server.metrics()
    assert value(samples, "foveate_requests_total", **COLOURS, code="OK") == 2
    assert value(samples, "foveate_requests_total", **COLOURS, code="INVALID_ARGUMENT") == 1
    method = "/foveate.v1.ClassifierService/ClassifyStream"
    assert value(samples, "foveate_calls_total", method=method, code="OK") == 1


@BOTH
def test_methods_that_callers_make_up_share_a_label(start: Callable, tmp_path) -> None:
    tokens = tmp_path / "tokens.toml"
    parts = [
        f'[[tokens]]\nname = "{name}"\nsecret = "{name}-0123456789"\npermissions = ["{name}"]\n'
        for name in ("infer", "metrics")
    ]
    tokens.write_text("".join(parts), encoding="utf-8")
    server = start("--tokens", tokens, "--metrics-address", "127.0.0.1:0")
    known = "/foveate.v1.ClassifierService/ListModels"
    methods = [*(f"/made.up.Service/Method{number}" for number in range(300)), known]
    with server.channel() as channel:
        for method in methods:
            with pytest.raises(grpc.RpcError) as raised:
                channel.unary_unary(method)(b"", timeout=60)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    text = server.get("/metrics", "metrics-0123456789")[1]
    assert "made.up" not in text
    assert 'foveate_calls_total{code="UNAUTHENTICATED",method="unknown"} 300.0' in text
    assert f'foveate_calls_total{{code="UNAUTHENTICATED",method="{known}"}} 1.0' in text


GAUGES = {
    *("foveate_model_ready", "foveate_model_load_seconds", "foveate_queue_limit"),
    *("foveate_instances", "foveate_batch_limit", "foveate_batch_delay_limit_seconds"),
}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_gone_has_no_gauges_and_keeps_its_counts_for_a_while(
    start: Callable, write_bundle: Callable, tmp_path, workers: int
) -> None:
    path = write_bundle()
    write_bundle(name="other")
    server = start(
        *("--repository-mode", "poll", "--poll-interval", "0.05", "--workers", workers),
        *("--metrics-address", "127.0.0.1:0"),
        repository=tmp_path / "repository",
    )
    server.classify()

    def shown(**labels: str) -> set[str]:
        """Return the names of the metrics that have a series of these labels."""
        return {name for name, has in server.metrics() if labels.items() <= dict(has).items()}

    def ready(version: str) -> float | None:
        labels = frozenset({("model", "colours"), ("version", version)})
        return server.metrics().get(("foveate_model_ready", labels))

    wait_until(lambda: ready("1") == workers)
    assert shown(**COLOURS) >= GAUGES
    write_bundle(version=2)
    # The first is known and does not serve.
    wait_until(lambda: (ready("1"), ready("2")) == (0, workers))
    labels = frozenset(COLOURS.items())
    wait_until(lambda: server.metrics()["foveate_queue_limit", labels] == 0)
    shutil.rmtree(path)
    wait_until(lambda: ready("1") is None)
    assert not shown(**COLOURS) & GAUGES
    assert value(server.metrics(), "foveate_requests_total", **COLOURS, code="OK") == 1
    shutil.rmtree(path.parent)
    wait_until(lambda: ready("2") is None)
    assert not shown(model="colours") & GAUGES
    assert shown(model="other") >= GAUGES


def test_the_series_of_a_version_are_forgotten_after_a_while() -> None:
    now = 0.0
    statistics = Statistics()
    metrics, bundles = Metrics(statistics), [("colours", str(number)) for number in range(1, 51)]
    metrics._known_versions._clock = lambda: now

    def series() -> int:
        return len(statistics.figures.items())

    peak = 0
    for model, version in bundles:
        now += FORGET_SECONDS
        statistics.on_load(model, version, 1.0)
        statistics.on_batch(model, version, BatchRun(size=1, gather=0, infer=0, split=0, lane=0))
        statistics.on_failure(model, "", OverloadedError("FULL", "", retry_delay=timedelta()), 0)
        metrics.sample(served([(model, version)]))
        peak = max(peak, series())
        labels = {"model": model, "version": version}
        assert metrics.registry.get_sample_value("foveate_model_load_seconds", labels) == 1
    assert series() == peak
    metrics.sample(served([]))
    assert metrics.registry.get_sample_value("foveate_model_load_seconds", labels) is None
    assert metrics.registry.get_sample_value("foveate_batch_size_count", labels) == 1
    now += FORGET_SECONDS
    metrics.sample(served([]))
    assert series() == 0
    assert metrics.registry.get_sample_value("foveate_batch_size_count", labels) is None


def served(versions: list[tuple[str, str]]) -> Repository:
    """Return what has these versions, of which none is loaded."""
    repository = Repository(Path("nowhere"), create_runner, BatchPolicy())
    for name, version in versions:
        number = int(version)
        model = Model(name=name, versions={number: Version(path=Path(), number=number)})
        repository._models[name] = model
    return repository


def test_the_page_shows_models_failures_and_settings(
    start: Callable, write_bundle: Callable, tmp_path
) -> None:
    write_bundle()
    broken = write_bundle(name="broken")
    (broken / "model.onnx").write_bytes(b"<b>no graph</b>")
    server = start("--metrics-address", "127.0.0.1:0", repository=tmp_path / "repository")
    status, page = server.get("/")
    assert status is HTTPStatus.OK
    assert '<td class="ready">ready</td><td>onnxruntime, cpu, fp32</td>' in page
    assert '<td class="failed">failed</td>' in page
    assert "model.onnx: 15 bytes" in page
    assert "<code>max_batch</code></td><td>8</td>" in page
    assert "<b>" not in page


def test_the_probes_follow_the_server_to_its_end(start: Callable) -> None:
    server = start("--metrics-address", "127.0.0.1:0", "--shutdown-delay", "5")
    url = server.metrics_url
    assert server.get("/readyz") == (HTTPStatus.OK, "ready\n")
    server.process.terminate()
    while server.get("/readyz")[0] is HTTPStatus.OK:
        assert server.process.poll() is None
    assert server.get("/readyz") == (HTTPStatus.SERVICE_UNAVAILABLE, "not ready\n")
    assert server.get("/healthz")[0] is HTTPStatus.OK
    server.classify()
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as idle:
        assert server.process.wait(timeout=60) == 0
        assert idle.recv(1) == b""
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"GET /none HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 "),
        (b"HEAD /healthz HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 "),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"HTTP/1.1 405 "),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b"HTTP/1.1 431 "),
        (b"\x00\xff\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /", b""),
    ],
)
def test_what_is_no_plain_request_is_refused(
    start_once: Callable, sent: bytes, answer: bytes
) -> None:
    server = start_once("--metrics-address", "127.0.0.1:0")
    host, _, port = server.metrics_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        received = client.recv(1 << 16)
    assert received.startswith(answer)
    assert bool(received) is bool(answer)
    if sent.startswith(b"HEAD"):
        assert received.endswith(b"\r\n\r\n")


def test_kept_and_shared_answers_are_counted_and_told(
    start: Callable, picture: ClassifyRequest
) -> None:
    server = start(
        *("--cache-bytes", "1048576", "--deduplicate", "--metrics-address", "127.0.0.1:0")
    )
    request = ClassifyRequest(timing=True)
    request.MergeFrom(picture)
    with server.channel() as channel:
        stub = ClassifierServiceStub(channel)
        cached = [stub.Classify(request, timeout=60).timing.cached for _ in range(3)]
    assert cached == [False, True, True]
    samples = server.metrics()
    count = lambda name: value(samples, name, **COLOURS)  # noqa: E731
    assert count("foveate_cache_hits_total") == 2
    assert count("nv_cache_num_hits_per_model") == 2
    assert count("nv_cache_num_misses_per_model") == 1
    assert count("nv_cache_hit_duration_per_model") > 0
    assert count("foveate_request_seconds_count") == 3
    assert count("foveate_infer_seconds_count") == 1
