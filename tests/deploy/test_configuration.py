"""What is deployed agrees with the server and with itself; the containers are proven by
`make containers`."""

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from skimage import data

from ..conftest import FOVEATE
from .dashboard import DASHBOARD, ROOT, queries

COMPOSE = ROOT / "docker-compose.yml"
SECURE = ROOT / "deploy/compose/secure.yml"
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


SERVICES = load(COMPOSE)["services"]


@pytest.fixture(scope="module")
def metrics(imagenet_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the names on the metrics page of a server that has classified a photograph."""
    photograph = tmp_path_factory.mktemp("photograph") / "coffee.jpg"
    Image.fromarray(data.coffee()).save(photograph)
    command = [FOVEATE, "serve", "--repository", imagenet_repository, "--address", "127.0.0.1:0"]
    command += ["--metrics-address", "127.0.0.1:0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            address = server.stdout.readline().split()[-1]
            page = next(line.split()[-1] for line in server.stderr if "metrics and status" in line)
            subprocess.run(
                [FOVEATE, "classify", photograph, "--address", address],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            with urllib.request.urlopen(f"{page}/metrics", timeout=10) as answer:  # noqa: S310 - our own server
                text = answer.read().decode()
        finally:
            server.terminate()
            server.communicate()
    return set(re.findall(r"^([a-z]\w+)[{ ]", text, re.MULTILINE))


def test_every_metric_of_the_dashboard_is_exported(metrics: set[str]) -> None:
    wanted = {name for query in queries() for name in query.metrics}
    assert wanted
    assert wanted <= metrics


def test_every_panel_asks_the_provisioned_source() -> None:
    source = load(ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml")
    uid = source["datasources"][0]["uid"]
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == uid
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in own) < 24, panel["title"]
        assert not cells & own, panel["title"]
        cells |= own


def test_dashboard_and_source_are_where_grafana_looks() -> None:
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    provider = load(ROOT / "deploy/grafana/provisioning/dashboards/foveate.yml")["providers"][0]
    folders = {inside: ROOT / outside for outside, inside in mounts.items()}
    assert folders[provider["options"]["path"]] == DASHBOARD.parent
    assert (folders["/etc/grafana/provisioning"] / "datasources/prometheus.yml").is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]


def test_what_serves_is_started_again() -> None:
    ends = {"models", "engines", "bench", "batch"}
    for name, service in SERVICES.items():
        assert service.get("restart", "no") == ("no" if name in ends else "unless-stopped"), name


def test_ports_are_bound_to_this_machine_unless_told_otherwise() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in ports)


def test_every_target_is_in_the_dockerfile() -> None:
    stages = set(re.findall(r"^FROM .* AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE))
    targets = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    assert targets == {"serve-cpu", "serve-gpu", "train-export", "client", "web"}
    assert targets <= stages


def variables() -> Iterator[tuple[str, str]]:
    for path in (COMPOSE, SECURE):
        yield from re.findall(r"\$\{(\w+):-([^}]*)\}", path.read_text(encoding="utf-8"))


def test_what_the_images_are_made_of_is_in_their_context() -> None:
    text = (ROOT / "deploy/docker/Dockerfile").read_text()
    (distributions,) = re.findall(r"for distribution in ([a-z ]+);", text)
    allowed = (ROOT / ".dockerignore").read_text().split()
    # The version and the licence stand beside the distributions.
    for path in (*distributions.split(), "VERSION", "LICENSE", "constraints.txt"):
        assert f"!{path}" in allowed, path


def test_every_variable_is_in_the_example_with_its_default() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^#(\w+)=(.*)$", example, re.MULTILINE)) == set(variables())


def test_the_server_knows_the_settings_it_is_given() -> None:
    environment = {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))
        for name, value in SERVICES["server"]["environment"].items()
    }
    settings = subprocess.run(
        [FOVEATE, "serve", "--repository", "/models", "--print-config"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert 'log_format = "json"' in settings


def test_the_tools_that_build_are_those_of_the_development() -> None:
    pins = [
        set(re.findall(r"^uv==.*$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE))
        for path in ("constraints.txt", "deploy/docker/tools.txt")
    ]
    assert pins[0]
    assert pins[0] == pins[1]
