"""What the manifests say runs: the arguments, the environment, the probes and the stop."""

import json
import os
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import envoy
import pytest
import trustme
import yaml

from foveate_client import CallError, Client, Credentials

from ..faults.honest import Honest
from ..waiting import wait_until
from .manifests import KUBERNETES, Manifest, build, chart, environment, pod_of
from .pods import Pod, server, started

MODEL = "efficientnet_lite0"
PHOTOGRAPH = Path(__file__).parents[2] / "docs/images/coffee.jpg"

Start = Callable[..., Pod]


@pytest.fixture
def start(imagenet_repository: Path, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a container over the repository."""
    with ExitStack() as stack:

        def start(container: Manifest, *prefix: str, **mounts: Path) -> Pod:
            folders = {"/models": imagenet_repository}
            folders |= {f"/{path}": folder for path, folder in mounts.items()}
            log = tmp_path / f"log-{uuid.uuid4().hex}"
            return stack.enter_context(started(container, folders, log, *prefix))

        yield start


def best(address: str, credentials: Credentials | None = None) -> str:
    with Client(address, credentials=credentials) as client:
        return client.classify(PHOTOGRAPH, model=MODEL).predictions[0].label


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - our own server
        return bytes(answer.read())


@pytest.mark.parametrize("folder", ["base", "overlays/cpu"])
def test_the_server_of_the_manifests_serves_and_its_probes_pass(start: Start, folder: str) -> None:
    pod = start(server(build(KUBERNETES / folder)))
    assert pod.passes("readinessProbe")
    assert pod.passes("livenessProbe")
    assert best(pod.address) == "espresso"
    metrics = get(pod.url("metrics and status") + "/metrics").decode()
    for name in ("foveate_queue_seconds_sum", "foveate_queue_seconds_count"):
        assert f"\n{name}{{" in metrics
    assert all(json.loads(line) for line in pod.text().splitlines())


def test_a_stop_under_load_loses_no_call_and_keeps_to_the_grace_period(start: Start) -> None:
    manifests = build(KUBERNETES / "base")
    grace = pod_of(manifests)["terminationGracePeriodSeconds"]
    container = server(manifests)
    delay = float(environment(container)["FOVEATE_SERVE_SHUTDOWN_DELAY"])
    stopped, other = start(container), start(container)
    both = f"ipv4:{stopped.address},{other.address}"
    unready: list[float] = []

    def watch() -> None:
        began = time.monotonic()
        wait_until(lambda: not stopped.passes("readinessProbe"))
        unready.append(time.monotonic() - began)

    # Kubernetes sends TERM while the pod is still in DNS: clients do call it.
    with Honest(both, MODEL, threads=4, attempts=4) as callers:
        callers.breaks()
        watcher = threading.Thread(target=watch)
        watcher.start()
        seconds = stopped.terminate()
        watcher.join()
        callers.settle()
        codes = callers.codes()
    assert stopped.process.returncode == 0
    assert codes.keys() == {"OK"}
    assert codes["OK"] > 20
    # The readiness probe fails well before calls are refused.
    assert unready[0] < delay
    assert delay <= seconds < grace
    assert other.passes("readinessProbe")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secret(authority: trustme.CA, tmp_path: Path) -> Path:
    """Return a folder as cert-manager's Secret is mounted."""
    folder = tmp_path / "secret"
    folder.mkdir()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    (folder / "tls.crt").write_bytes(issued.cert_chain_pems[0].bytes())
    (folder / "tls.key").write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(folder / "ca.crt")
    return folder


def test_with_mtls_the_probes_pass_and_clients_need_a_certificate(
    start: Start, secret: Path, authority: trustme.CA
) -> None:
    pod = start(server(build(KUBERNETES / "overlays/mtls")), **{"run/secrets/tls": secret})
    assert pod.passes("readinessProbe")
    assert pod.passes("livenessProbe")
    ca = authority.cert_pem.bytes()
    own = authority.issue_cert("client@example.com")
    known = Credentials(ca=ca, cert=own.cert_chain_pems[0].bytes(), key=own.private_key_pem.bytes())
    assert best(pod.address, known) == "espresso"
    with pytest.raises(CallError, match="UNAVAILABLE"):
        best(pod.address, Credentials(ca=ca))


def test_http_is_served_where_the_values_say_so(start: Start) -> None:
    pod = start(server(chart({"http": True})))
    assert json.loads(get(pod.url("HTTP on") + "/v2"))["name"]
    assert best(pod.address) == "espresso"


@pytest.mark.parametrize("runtime", ["foveate-grpc", "foveate-http"])
def test_the_runtimes_of_kserve_serve_what_it_mounts(
    start: Start, imagenet_repository: Path, tmp_path: Path, runtime: str
) -> None:
    (found,) = (m for m in build(KUBERNETES / "kserve") if m["metadata"]["name"] == runtime)
    # A modelcar's models are a link into its own files.
    link = tmp_path / "models"
    link.symlink_to(imagenet_repository)
    pod = start(found["spec"]["containers"][0], **{"mnt/models": link})
    assert pod.passes("readinessProbe")
    assert best(pod.address) == "espresso"


def test_the_container_that_copies_the_models_copies_them(
    start: Start, imagenet_repository: Path, tmp_path: Path
) -> None:
    pod = pod_of(chart({"models": {"source": "init", "image": "registry.example/models:7"}}))
    (copying,) = pod["initContainers"]
    copy = tmp_path / "copy"
    copy.mkdir()
    places = {"/models/.": f"{imagenet_repository}/.", "/copy/": f"{copy}/"}
    subprocess.run([places.get(word, word) for word in copying["command"]], check=True)
    assert best(start(server(chart({})), models=copy).address) == "espresso"


@contextmanager
def quota(cores: str) -> Iterator[Path]:
    """Yield the folder of a control group with the limit that a container would have."""
    one, two = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    root = two if (two / "cgroup.controllers").exists() else one
    folder = root / f"foveate-{uuid.uuid4().hex}"
    period = 100_000
    try:
        folder.mkdir()
        if root == two:
            (folder / "cpu.max").write_text(f"{int(cores) * period} {period}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(period))
            (folder / "cpu.cfs_quota_us").write_text(str(int(cores) * period))
    except OSError as error:
        pytest.skip(f"no control group can be made ({error.strerror})")
    try:
        yield folder
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core is all there is")
def test_the_server_starts_as_many_threads_as_its_limit_allows_cores(start: Start) -> None:
    container = server(chart({"cores": 1}))
    with quota(container["resources"]["limits"]["cpu"]) as group, ExitStack() as stack:
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        pod = start(container, "/bin/sh", "-c", enter, "sh")
        stack.callback(pod.process.kill)
        assert "thread counts follow 1 of" in pod.text()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def proxied(pods: list[Pod], folder: Path) -> Iterator[str]:
    """Run the Envoy of the component in front of pods; yield its address."""
    config = yaml.safe_load((KUBERNETES / "components/envoy/envoy.yaml").read_text("utf-8"))
    (listener,) = config["static_resources"]["listeners"]
    (cluster,) = config["static_resources"]["clusters"]
    place = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert place[0]["endpoint"]["address"]["socket_address"] == {
        "address": "foveate",
        "port_value": 50051,
    }
    ports = [free_port(), free_port()]
    for address, port in zip((listener["address"], config["admin"]["address"]), ports, strict=True):
        address["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    # What the name of the headless Service leads to.
    place[:] = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
        for host, _, port in (pod.address.rpartition(":") for pod in pods)
    ]
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    binary = Path(envoy.__file__).parent / "_bin/envoy"
    command = [binary, "--config-path", file, "--concurrency", "1", "--log-level", "error"]
    command += ["--use-dynamic-base-id"]
    with (
        (folder / "envoy.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            admin = f"http://127.0.0.1:{ports[1]}"

            def healthy() -> bool:
                try:
                    return get(f"{admin}/clusters").count(b"health_flags::healthy") == len(pods)
                except OSError:
                    return False

            wait_until(healthy, (folder / "envoy.log").read_text)
            yield f"127.0.0.1:{ports[0]}"
        finally:
            process.terminate()


def pictures(pod: Pod) -> float:
    text = get(pod.url("metrics and status") + "/metrics").decode()
    lines = [line for line in text.splitlines() if line.startswith("foveate_requests_total{")]
    return sum(float(line.split()[-1]) for line in lines)


def test_one_connection_through_envoy_reaches_every_pod_and_a_stop_loses_no_call(
    start: Start, tmp_path: Path
) -> None:
    container = server(build(KUBERNETES / "base"))
    pods = [start(container), start(container)]
    with proxied(pods, tmp_path) as address:
        with Client(address) as client:
            for _ in range(20):
                client.classify(PHOTOGRAPH, model=MODEL)
        shares = [pictures(pod) for pod in pods]
        assert sum(shares) == 20
        assert min(shares) >= 4
        with Honest(address, MODEL, threads=2, attempts=4) as callers:
            callers.breaks()
            pods[0].terminate()
            callers.settle()
            assert callers.codes().keys() == {"OK"}


def test_a_client_deals_its_requests_over_the_pods_of_the_headless_name(start: Start) -> None:
    container = server(build(KUBERNETES / "base"))
    pods = [start(container), start(container)]
    with Client(f"ipv4:{pods[0].address},{pods[1].address}") as client:
        for _ in range(20):
            client.classify(PHOTOGRAPH, model=MODEL)
    assert min(pictures(pod) for pod in pods) >= 4
