"""The images and the composition, run for real: `make containers`.

It needs a Docker daemon on this machine, root, debootstrap and compose. The
images are built on Debian alone; the first run takes minutes.
"""

import json
import math
import os
import re
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import trustme

from foveate_client import Cam, Client, Credentials, Retries, UnauthenticatedError, UnavailableError

from ...conftest import FOVEATE
from ...waiting import wait_until
from ..dashboard import ROOT, Query, queries
from .conftest import START_SECONDS, Composition, Docker, free_port, run

MEGABYTE = 1_000_000
READY_SECONDS = 5
RECOVERY_SECONDS = 60
SCRAPE_SECONDS = 60
USER = "10001"
TOKEN = "correct-horse-battery-staple"  # noqa: S105 - a test's own
METRICS_TOKEN = "a-token-that-reads-metrics"  # noqa: S105 - a test's own


def in_image(docker: Docker, image: str, script: str) -> str:
    """Run a shell script in a container of `image`, as root, and return what it printed."""
    return docker("run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-euc", script)


def normal(name: str) -> str:
    """Return a distribution's name as constraints.txt writes it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


# The images


def test_the_server_takes_at_most_450_megabytes(docker: Docker, server_image: str) -> None:
    assert docker.inspect(server_image)["Size"] < 450 * MEGABYTE


def test_the_server_with_openvino_takes_at_most_650_megabytes(
    docker: Docker, openvino_image: str
) -> None:
    assert docker.inspect(openvino_image)["Size"] < 650 * MEGABYTE


@pytest.mark.parametrize("image", ["server_image", "client_image"])
def test_an_image_holds_what_runs_and_no_more(
    docker: Docker, image: str, request: pytest.FixtureRequest
) -> None:
    name = request.getfixturevalue(image)
    config = docker.inspect(name)["Config"]
    assert config["User"] == f"{USER}:{USER}"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["Labels"]["org.opencontainers.image.title"].startswith("Foveate")
    tools = "for tool in cc gcc g++ clang make pip uv cyclonedx-py; do command -v $tool || :; done"
    assert not in_image(docker, name, tools)
    caches = "find / -xdev -path '*/.cache' -o -xdev -path '/var/lib/apt/lists/*_Packages*'"
    assert not in_image(docker, name, caches)
    bill = json.loads(in_image(docker, name, "cat /opt/foveate/sbom.cdx.json"))
    versions = {normal(part["name"]): part["version"] for part in bill["components"]}
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    others = {n: v for n, v in versions.items() if not n.startswith("foveate")}
    assert others == {name: pinned[name] for name in others}
    assert {"foveate-client", "foveate-proto", "grpcio"} <= versions.keys()


def test_a_server_with_one_model_is_ready_within_5_seconds(
    docker: Docker, server_image: str, exported: Path
) -> None:
    begin = time.monotonic()
    container = docker(
        *("run", "--detach", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),  # noqa: S108 - the container's own
        *("--volume", f"{exported}:/models:ro", server_image),
    ).strip()
    try:
        with subprocess.Popen(
            [docker.command, "logs", "--follow", container],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as log:
            line = log.stdout.readline()
            seconds = time.monotonic() - begin
            log.terminate()
        assert line == "foveate serving 1 model on 0.0.0.0:50051\n"
        used = psutil.Process(docker.inspect(container)["State"]["Pid"]).cpu_times()
        print(f"ready after {seconds:.2f} s and {used.user + used.system:.2f} s of processor time")
        # Of a machine with other work, the clock would tell how much of that there is.
        assert used.user + used.system < READY_SECONDS
        docker("stop", container)
        assert docker.inspect(container)["State"]["ExitCode"] == 0
    finally:
        docker("rm", "--force", container)


# The composition


def test_it_becomes_healthy(composition: Composition) -> None:
    docker, server = composition.docker, composition.container("server")
    run(FOVEATE, "health", "--address", composition.address, "--wait", str(START_SECONDS))
    docker.wait_for(server, "health_status: healthy")
    assert docker.inspect(server)["State"]["Health"]["Status"] == "healthy"


def test_the_server_is_confined(composition: Composition) -> None:
    server = composition.container("server")

    def inside(script: str) -> str:
        return composition.docker("exec", server, "sh", "-c", script).strip()

    assert inside("id -u") == USER
    assert "Read-only" in inside("touch /opt/foveate/x 2>&1 || :")
    assert "Read-only" in inside("touch /models/x 2>&1 || :")
    assert inside("touch /tmp/x && echo written") == "written"
    status = dict(line.split(":\t") for line in inside("cat /proc/1/status").splitlines())
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    limits = composition.docker.inspect(server)["HostConfig"]
    assert limits["Memory"] == 2 * 2**30
    assert limits["PidsLimit"] == 256


def test_a_photograph_is_explained_from_the_host(
    composition: Composition, photographs: Path, tmp_path: Path
) -> None:
    answer = json.loads(
        run(
            *(FOVEATE, "classify", photographs / "coffee.jpg", "--address", composition.address),
            *("--cam", "--out", tmp_path, "--json"),
        )
    )
    assert answer["predictions"][0]["label"] == "espresso"
    [heatmap] = answer["cams"]
    values = np.load(Path(heatmap["path"]).with_suffix(".npy"))
    assert heatmap["label"] == "espresso"
    assert values.shape == (heatmap["height"], heatmap["width"])
    assert values.max() > values.min()
    assert Path(heatmap["path"]).stat().st_size > 0


def test_the_profile_batch_classifies_the_folder(composition: Composition) -> None:
    composition("--profile", "batch", "run", "--rm", "-T", "batch")
    table = results(composition, "cat /results/results.csv")
    assert "espresso" in next(line for line in table.splitlines() if "coffee.jpg" in line)
    assert len(table.splitlines()) == 4


def test_the_profile_bench_reports(composition: Composition) -> None:
    report = composition("--profile", "bench", "run", "--rm", "-T", "bench")
    assert "p99" in report
    assert "<svg" in results(composition, "cat /results/latencies.svg")


def results(composition: Composition, script: str) -> str:
    """Run a script in a container that has the volume of the results."""
    options = ("--rm", "--volume", f"{composition.project}_results:/results:ro")
    image = f"foveate-client:{composition.variables['TAG']}"
    return composition.docker("run", *options, "--entrypoint", "sh", image, "-euc", script)


def test_a_client_outlives_the_death_of_the_server(
    composition: Composition, photographs: Path
) -> None:
    docker, server = composition.docker, composition.container("server")
    photograph = (photographs / "coffee.jpg").read_bytes()
    before, after, failures = [], [], []
    killed, recovered = threading.Event(), threading.Event()

    def call(client: Client) -> None:
        while not recovered.is_set():
            asked_after = killed.is_set()
            try:
                answer = client.classify(photograph, cam=Cam(top=1))
            except UnavailableError as error:
                failures.append(error)
                continue
            assert answer.predictions[0].label == "espresso"
            (after if asked_after else before).append(answer)

    retries = Retries(attempts=5, initial_pause=1, max_pause=4)
    with (
        Client(composition.address, retries=retries, timeout=RECOVERY_SECONDS) as client,
        ThreadPoolExecutor(4) as callers,
    ):
        calls = [callers.submit(call, client) for _ in range(4)]
        try:
            wait_until(lambda: len(before) >= 8, limit=RECOVERY_SECONDS)
            # As the kernel would: what Docker itself is told to kill stays down.
            os.kill(docker.inspect(server)["State"]["Pid"], signal.SIGKILL)
            began = time.monotonic()
            killed.set()
            wait_until(lambda: len(after) >= 8, limit=RECOVERY_SECONDS)
            seconds = time.monotonic() - began
        finally:
            recovered.set()
        for finished in calls:
            finished.result()
    print(f"answered again {seconds:.2f} s after the kill; {len(failures)} calls failed")
    assert docker.inspect(server)["RestartCount"] == 1


# Prometheus, and what the dashboard asks it


def ask(composition: Composition, path: str, **parameters: str) -> Any:
    query = urllib.parse.urlencode(parameters)
    url = f"{composition.prometheus}/api/v1/{path}?{query}"
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own server
        return json.load(answer)["data"]


def scraped(composition: Composition) -> bool:
    targets = ask(composition, "targets")["activeTargets"]
    return [target["health"] for target in targets] == ["up"]


@pytest.fixture(scope="module")
def scraped_under_load(composition: Composition, photographs: Path) -> Iterator[Composition]:
    """Keep a load on the server, failures among it, until it shows in two scrapes and beyond."""
    wait_until(lambda: scraped(composition), limit=SCRAPE_SECONDS)
    ended = threading.Event()

    def call() -> None:
        with Client(composition.address) as client:
            while not ended.is_set():
                client.classify(photographs / "coffee.jpg", cam=Cam(top=1))
                list(client.classify_many([b"no picture"]))

    with ThreadPoolExecutor(1) as callers:
        calls = callers.submit(call)
        try:
            yield composition
        finally:
            ended.set()
        calls.result()


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.panel)
def test_every_panel_has_data(scraped_under_load: Composition, query: Query) -> None:
    def found() -> list[float]:
        answer = ask(scraped_under_load, "query", query=query.expression)
        values = [float(series["value"][1]) for series in answer["result"]]
        return [value for value in values if not math.isnan(value)]

    wait_until(lambda: bool(found()), limit=SCRAPE_SECONDS)
    assert min(found()) >= 0


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-token.yml"])
def test_prometheus_accepts_the_configuration(
    docker: Docker, prometheus_image: str, name: str
) -> None:
    docker(
        *("run", "--rm", "--entrypoint", "promtool"),
        *("--volume", f"{ROOT / 'deploy/prometheus'}:/config:ro"),
        *(prometheus_image, "check", "config", "--syntax-only", f"/config/{name}"),
    )


# TLS and tokens


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    authority = trustme.CA()
    server = authority.issue_cert("models.example")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    server.cert_chain_pems[0].write_to_path(folder / "server.pem")
    server.private_key_pem.write_to_path(folder / "server-key.pem")
    entry = '[[tokens]]\nname = "{}"\nsecret = "{}"\npermissions = ["{}"]\n'
    tokens = entry.format("web", TOKEN, "infer") + entry.format(
        "prometheus", METRICS_TOKEN, "metrics"
    )
    (folder / "tokens.toml").write_text(tokens, encoding="utf-8")
    (folder / "metrics-token").write_text(METRICS_TOKEN, encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def test_secrets_secure_the_server_and_its_metrics(
    composition: Composition, secrets: Path, photographs: Path
) -> None:
    secure = Composition(
        composition.docker,
        f"{composition.project}-secure",
        (*composition.files, ROOT / "deploy/compose/secure.yml"),
        {
            **composition.variables,
            "PORT": free_port(),
            "PROMETHEUS_PORT": free_port(),
            "SECRETS": str(secrets),
            "TLS_NAME": "models.example",
        },
    )
    trusted = Credentials(ca=secrets / "ca.pem", server_name="models.example")
    known = Credentials(ca=secrets / "ca.pem", server_name="models.example", token=TOKEN)
    try:
        secure.up("server", "prometheus")
        secure.docker.wait_for(secure.container("server"), "health_status: healthy")
        with Client(secure.address, credentials=known) as client:
            answer = client.classify(photographs / "coffee.jpg")
        with (
            Client(secure.address, credentials=trusted) as client,
            pytest.raises(UnauthenticatedError),
        ):
            client.classify(photographs / "coffee.jpg")
        wait_until(lambda: scraped(secure), limit=SCRAPE_SECONDS)
    finally:
        secure.down()
    assert answer.predictions[0].label == "espresso"
