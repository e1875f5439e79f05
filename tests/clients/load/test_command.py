import json
import sys
from datetime import timedelta

import pytest
from PIL import Image

from foveate.status import ErrorStatus, StatusError
from foveate_client.commands import load

SHORT = ("--duration", "0.3", "--warmup", "0.1")
PERCENTILES = ("p50", "p75", "p90", "p95", "p99", "p99.9", "p99.99", "maximum")


@pytest.fixture
def run(server, coffee, capsys):
    """Run `foveate load` against the server; return its code, stdout and stderr."""

    def run(*arguments, address=server.address):
        code = load.main([str(coffee), "--address", address, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_the_closed_loop_as_json(run, server):
    code, printed, _ = run(*SHORT, "--concurrency", 2, "--connections", 2, "--json")
    assert code == 0
    (found,) = json.loads(printed)["targets"]
    assert (found["address"], found["protocol"], found["model"]) == (
        server.address, "foveate", "pets",
    )  # fmt: skip
    assert (found["loop"], found["concurrency"], found["connections"]) == ("closed", 2, 2)
    latency = found["latency_ms"]
    assert latency["count"] == found["requests"] > 0
    values = [latency["minimum"], *(latency[name] for name in PERCENTILES)]
    assert values == sorted(values)
    assert found["rate"] == pytest.approx(found["completed"] / 0.3)
    assert found["errors"] == {}
    assert list(found["kinds"]) == ["plain"]


def test_the_open_loop_with_a_mix_as_json(run):
    code, printed, _ = run(
        *SHORT, "--rate", 100, "--cam-share", 0.5, "--feature-map-share", 0.3, "--json"
    )
    assert code == 0
    (found,) = json.loads(printed)["targets"]
    assert (found["loop"], found["offered_rate"]) == ("open", 100)
    assert set(found["kinds"]) == {"plain", "cam", "feature maps"}
    assert sum(kind["count"] for kind in found["kinds"].values()) == found["requests"]


def test_the_highest_rate_within_an_objective(run):
    code, printed, err = run(
        "--find-rate", "--p99", 1e-3, "--rate", 0.2, "--duration", 0.01, "--warmup", 0, "--json"
    )
    (found,) = json.loads(printed)["targets"]
    assert code == 1
    assert (found["offered_rate"], found["objective_p99_ms"]) == (None, 1e-3)
    assert [step["holds"] for step in found["steps"]] == [False, False]
    assert "0.2 requests/s" in err


def test_errors_are_told_by_code(run, server):
    answer, asked = server.service.classify, []

    def classify(request):
        asked.append(request)
        if len(asked) > 1:
            raise StatusError(ErrorStatus(code=8, reason="QUEUE_FULL", message="full"))
        return answer(request)

    server.service.classify = classify
    code, printed, _ = run(*SHORT)
    assert code == 1  # nothing was answered
    assert "RESOURCE_EXHAUSTED" in printed


def test_requests_are_held_back_from_a_server_that_refuses(run, server):
    answer, asked = server.service.classify, []

    def classify(request):
        asked.append(request)
        if len(asked) > 1:
            full = ErrorStatus(
                code=8, reason="QUEUE_FULL", message="full", retry_delay=timedelta(seconds=1)
            )
            raise StatusError(full)
        return answer(request)

    server.service.classify = classify
    often = ("--rate", 200, "--duration", 1, "--warmup", 0)
    _, printed, _ = run(*often, "--throttle")
    assert "of these held back" in printed
    asked.clear()
    _, printed, _ = run(*often, "--throttle", "--json")
    (found,) = json.loads(printed)["targets"]
    refused = found["errors"]["RESOURCE_EXHAUSTED"]
    # The first, which was answered, is of the driver and not of the load.
    assert refused == found["requests"]
    assert refused - found["held_back"] == len(asked) - 1
    # Held back with the probability n / (n + 1): as many are sent as the harmonic series has it.
    assert found["held_back"] > 0.8 * refused


def test_two_servers_are_driven_in_turn(run, server, tmp_path):
    plot = tmp_path / "latencies.png"
    code, printed, err = run(*SHORT, "--compare", server.address, "--rounds", 2, "--plot", plot)
    assert code == 0
    assert "second / first" in printed
    assert "p99.9" in printed
    assert err.count("round 1 of 2") == err.count("round 2 of 2") == 2
    with Image.open(plot) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_what_the_server_refuses_is_told_before_the_load(run, server):
    def classify(request):
        raise StatusError(ErrorStatus(code=5, reason="NO_MODEL", message="no model 'x'"))

    server.service.classify = classify
    code, printed, err = run("--model", "x")
    assert (code, printed) == (1, "")
    assert err == "foveate load: NOT_FOUND: no model 'x'\n"


def test_a_server_that_is_not_there_is_told(run, monkeypatch):
    monkeypatch.setattr(load, "_READY_SECONDS", 0.2)
    code, _, err = run(address="127.0.0.1:1")
    assert code == 1
    assert err == "foveate load: no connection within 0.2 s: 127.0.0.1:1\n"


def test_a_token_is_not_sent_in_the_clear_to_another_machine(run, tmp_path):
    token = tmp_path / "token"
    token.write_text("open-sesame\n")
    code, _, err = run("--token-file", token, address="models.example:443")
    assert code == 1
    assert "the token would travel to models.example:443 in the clear" in err
    code, _, err = run("--token-file", tmp_path / "missing")
    assert code == 1
    assert err == f"foveate load: cannot read {tmp_path / 'missing'}: No such file or directory\n"


def test_without_matplotlib_the_pip_line_is_told(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = run(*SHORT, "--plot", tmp_path / "plot.png")
    assert code == 1
    assert "pip install 'foveate-client[load]'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--find-rate"], "--find-rate needs --p99"),
        (["--p99", "5"], "--p99 needs --find-rate"),
        (["--cam-share", "0.7", "--feature-map-share", "0.4"], "add up to 1.1; the limit is 1"),
        (["--cam-share", "2"], "must be from 0 to 1, not 2"),
        (["--protocol", "oip"], "--protocol oip needs --model"),
        (["--protocol", "oip", "--model", "x", "--cam-share", "1"], "has no maps"),
        (["--rate", "1", "--concurrency", "2"], "not allowed with"),
        (["--rate", "0"], "must be above 0, not 0"),
        (["--warmup", "-1"], "must not be below 0, not -1"),
        (["--connections", "0"], "must be at least 1, not 0"),
        (["--compare-model", "x"], "need --compare"),
        (["--throttle"], "--throttle needs --rate"),
        (["--throttle", "--rate", "5", "--find-rate", "--p99", "5"], "and not --find-rate"),
    ],
)
def test_wrong_usage_is_told(run, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert message in " ".join(capsys.readouterr().err.split())
