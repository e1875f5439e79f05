"""The manifests are valid, agree with the chart, and say what the server needs."""

import copy
import importlib.util
import json
import re
import subprocess
from importlib import import_module
from pathlib import Path

import helm_python
import kubernetes_validate
import promql_parser
import pytest
import yaml

from foveate_serve.process import CLOSE_SECONDS
from foveate_serve.settings import ENV_PREFIX, Settings

from ..conftest import FOVEATE
from ..environment import make_environment
from ..once import made_once
from .manifests import (
    CHART,
    KUBERNETES,
    ROOT,
    Manifest,
    build,
    build_with,
    chart,
    documents,
    environment,
    example,
    only,
    pod_of,
)

VERSION = "1.37"
"""The newest Kubernetes whose schemas the package has."""

COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())

MODELS = {
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1",
    "DestinationRule": "cloudcoil.models.istio.networking.v1",
    "VirtualService": "cloudcoil.models.istio.networking.v1",
}
"""Where the models made from the published schemas of other projects' kinds are."""

VALUES: dict[str, dict] = {
    "default": {},
    "http": {"http": True},
    "hpa": {"autoscaling": {"kind": "hpa"}},
    "keda": {"autoscaling": {"kind": "keda"}},
    "monitoring": {"monitoring": {"enabled": True, "tokenSecret": "scraper"}},
    "tokens": {"tokens": {"secret": "foveate-tokens"}},
    "image": {"models": {"source": "image", "image": "registry.example/models:7"}},
    "init": {"models": {"source": "init", "image": "registry.example/models:7"}},
    "without": {"disruption": {"enabled": False}, "networkPolicy": {"enabled": False}},
    **{path.stem: example(path.name) for path in (CHART / "examples").iterdir()},
}


def check(manifest: Manifest) -> None:
    """Raise where a manifest has a field that its kind has not, or a value of a wrong type."""
    kind = manifest["kind"]
    if kind not in MODELS:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
        return
    model = getattr(import_module(MODELS[kind]), kind)
    kept = model.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_unset=True)
    # The models leave out what they do not know.
    assert kept == manifest


@pytest.mark.parametrize("name", VALUES)
def test_the_chart_gives_valid_manifests(name: str) -> None:
    for manifest in chart(VALUES[name]):
        check(manifest)


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_are_valid(name: str) -> None:
    for manifest in build(KUBERNETES / "overlays" / name):
        check(manifest)


@pytest.mark.parametrize("name", COMPONENTS)
def test_components_are_valid(name: str, tmp_path: Path) -> None:
    for manifest in build_with([name], tmp_path):
        check(manifest)


def test_the_claim_is_valid_and_the_one_that_is_mounted() -> None:
    (claim,) = documents((KUBERNETES / "examples/claim.yaml").read_text(encoding="utf-8"))
    check(claim)
    (models, _) = pod_of(build(KUBERNETES / "base"))["volumes"]
    assert models["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize("kind", ["Deployment", *MODELS])
def test_a_field_that_a_kind_has_not_is_found(kind: str, tmp_path: Path) -> None:
    manifests = build_with(["keda", "monitoring", "istio"], tmp_path)
    manifest = copy.deepcopy(only(kind, manifests))
    check(manifest)
    manifest["spec"]["replica"] = 3
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        check(manifest)


def test_the_chart_is_without_fault() -> None:
    findings = helm_python.lint(str(CHART))
    assert findings["total_charts_linted"] == 1
    assert not findings["errors"]


def test_what_kustomize_builds_upon_is_rendered_from_the_chart() -> None:
    path = ROOT / "scripts/render_manifests.py"
    spec = importlib.util.spec_from_file_location("render_manifests", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for file, text in script.manifests().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name} is stale: make manifests"


def comparable(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    """Return manifests by kind and name, without the order of variables and volumes."""
    found = {}
    for manifest in copy.deepcopy(manifests):
        if manifest["kind"] == "Deployment":
            pod = manifest["spec"]["template"]["spec"]
            pod["volumes"].sort(key=lambda volume: volume["name"])
            for container in pod["containers"]:
                container["env"] = environment(container)
                container["volumeMounts"].sort(key=lambda mount: mount["name"])
        found[manifest["kind"], manifest["metadata"]["name"]] = manifest
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_what_the_chart_gives_with_the_values_of_its_name(name: str) -> None:
    built = comparable(build(KUBERNETES / "overlays" / name))
    assert built == comparable(chart(example(f"{name}.yaml")))


@pytest.mark.parametrize(
    ("component", "values"),
    [
        ("autoscaling", VALUES["hpa"]),
        ("keda", VALUES["keda"]),
        ("monitoring", {"monitoring": {"enabled": True}}),
        ("models-image", {"models": {"source": "image", "image": "foveate-models:0.1.0"}}),
        ("models-init", {"models": {"source": "init", "image": "foveate-models:0.1.0"}}),
    ],
)
def test_a_component_is_what_the_chart_gives_with_its_values(
    component: str, values: dict, tmp_path: Path
) -> None:
    assert comparable(build_with([component], tmp_path)) == comparable(chart(values))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"cores": 1.5}, "cores"),
        ({"replica": 3}, "replica"),
        ({"models": {"source": "image"}}, "image"),
        ({"tls": {"mutual": True}}, "secret"),
        ({"autoscaling": {"kind": "vpa"}}, "kind"),
        ({"settings": {"address": "0.0.0.0:1"}}, "address"),
        ({"settings": {"token": "in the clear, in a manifest"}}, "token"),
        ({"networkPolicy": {"clients": []}}, "clients"),
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_are_refused(values: dict, named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=named):
        chart(values)


def test_every_setting_becomes_a_variable_that_the_server_reads() -> None:
    settings = {"max_request_bytes": 268_435_456, "admin": True, "max_delay": 0.002}
    (container,) = pod_of(chart({"settings": settings}))["containers"]
    printed = subprocess.run(
        [FOVEATE, *container["args"], "--print-config"],
        env=environment(container),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # A large number is written without an exponent.
    for line in ("max_request_bytes = 268435456", "admin = true", "max_delay = 0.002"):
        assert line in printed.splitlines()


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_variables_are_settings(values: dict) -> None:
    (container,) = pod_of(chart(values))["containers"]
    names = {name.removeprefix(ENV_PREFIX).lower() for name in environment(container)}
    assert names <= set(Settings.model_fields)


def test_variables_of_services_would_stop_the_server_and_are_off() -> None:
    pod = pod_of(chart({}))
    assert pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    # As Kubernetes would set it for a Service called foveate-serve.
    linked = {**environment(container), "FOVEATE_SERVE_SERVICE_HOST": "10.0.0.1"}
    refused = subprocess.run(
        [FOVEATE, "serve", "--print-config"],
        env=linked,
        check=False,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert "FOVEATE_SERVE_SERVICE_HOST" in refused.stderr


@pytest.mark.parametrize(("delay", "timeout"), [(5, 30), (0.5, 10), (12, 300)])
def test_the_grace_period_is_longer_than_the_longest_stop(delay: float, timeout: float) -> None:
    pod = pod_of(chart({"settings": {"shutdown_delay": delay, "shutdown_timeout": timeout}}))
    grace = pod["terminationGracePeriodSeconds"]
    assert delay + timeout + CLOSE_SECONDS + 1 <= grace <= delay + timeout + 3


def test_the_number_of_cores_is_whole_and_no_more_than_is_guaranteed() -> None:
    for values in VALUES.values():
        (container,) = pod_of(chart(values))["containers"]
        resources = container["resources"]
        assert resources["requests"]["cpu"] == resources["limits"]["cpu"]
        assert float(resources["limits"]["cpu"]).is_integer()
        assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_pods_have_the_least_rights(tmp_path: Path) -> None:
    manifests = build_with(["envoy", "models-init"], tmp_path)
    pods = [m["spec"]["template"]["spec"] for m in manifests if m["kind"] == "Deployment"]
    assert len(pods) == 2
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["capabilities"] == {"drop": ["ALL"]}


def test_every_port_that_is_named_is_one_of_the_container() -> None:
    manifests = chart({"http": True, "monitoring": {"enabled": True}})
    (container,) = pod_of(manifests)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert ports[container[probe]["httpGet"]["port"]] == 9090
    for service in (m for m in manifests if m["kind"] == "Service"):
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for rule in only("NetworkPolicy", manifests)["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= ports.keys()
    (endpoint,) = only("ServiceMonitor", manifests)["spec"]["endpoints"]
    headless = only("Service", manifests, "foveate")
    assert endpoint["port"] in {port["name"] for port in headless["spec"]["ports"]}


def test_everything_selects_the_pods() -> None:
    manifests = chart({"monitoring": {"enabled": True}})
    labels = only("Deployment", manifests)["spec"]["template"]["metadata"]["labels"]
    selectors = [
        only("Deployment", manifests)["spec"]["selector"]["matchLabels"],
        only("PodDisruptionBudget", manifests)["spec"]["selector"]["matchLabels"],
        only("NetworkPolicy", manifests)["spec"]["podSelector"]["matchLabels"],
        *(m["spec"]["selector"] for m in manifests if m["kind"] == "Service"),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    for service in (m for m in manifests if m["kind"] == "Service"):
        wanted = only("ServiceMonitor", manifests)["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= service["metadata"]["labels"].items()


def test_the_headless_service_has_no_address_and_the_other_has() -> None:
    manifests = build(KUBERNETES / "base")
    assert only("Service", manifests, "foveate")["spec"]["clusterIP"] == "None"
    assert "clusterIP" not in only("Service", manifests, "foveate-cluster")["spec"]


def queries() -> list[str]:
    adapter = yaml.safe_load(
        (KUBERNETES / "examples/prometheus-adapter.yaml").read_text(encoding="utf-8")
    )
    (rule,) = adapter["rules"]["custom"]
    (scaled,) = documents((KUBERNETES / "components/keda/scaledobject.yaml").read_text())
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    of_adapter = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
    return [query, of_adapter.replace("<<.LabelMatchers>>", 'namespace="default"')]


@pytest.mark.parametrize("query", queries(), ids=["keda", "adapter"])
def test_the_queries_of_the_queue_are_in_prometheus_language(
    query: str,
) -> None:
    promql_parser.parse(query)
    names = set(re.findall(r"foveate_\w+", query))
    assert names == {"foveate_queue_seconds_sum", "foveate_queue_seconds_count"}


def test_the_adapter_names_the_metric_that_the_autoscaler_wants() -> None:
    adapter = yaml.safe_load(
        (KUBERNETES / "examples/prometheus-adapter.yaml").read_text(encoding="utf-8")
    )
    scaler = only("HorizontalPodAutoscaler", chart(VALUES["hpa"]))
    wanted = [m["pods"]["metric"]["name"] for m in scaler["spec"]["metrics"] if "pods" in m]
    assert wanted == [rule["name"]["as"] for rule in adapter["rules"]["custom"]]


def test_versions_are_that_of_the_file() -> None:
    version = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (about["version"], about["appVersion"]) == (version, version)
    for runtime in build(KUBERNETES / "kserve"):
        for container in runtime["spec"].get("containers", []):
            assert container["image"] == f"foveate-serve-cpu:{version}"


def test_images_are_targets_of_the_dockerfile() -> None:
    stages = re.findall(
        r"^FROM .* AS (\S+)$", (ROOT / "deploy/docker/Dockerfile").read_text(), re.MULTILINE
    )
    for overlay in OVERLAYS:
        (container,) = pod_of(build(KUBERNETES / "overlays" / overlay))["containers"]
        assert container["image"].partition(":")[0].removeprefix("foveate-") in stages


@pytest.mark.network
def test_the_objects_of_kserve_are_those_of_its_own_models(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def make(folder: Path) -> None:
        make_environment(folder / "venv", "kserve==0.21.0")

    python = made_once(tmp_path_factory, "kserve", make) / "venv/bin/python"

    def wrong(manifests: list[Manifest]) -> list[str]:
        found = subprocess.run(
            [python, Path(__file__).with_name("kserve_models.py")],
            input=json.dumps(manifests),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return found.stdout.splitlines()

    manifests = build(KUBERNETES / "kserve")
    assert {m["kind"] for m in manifests} == {"ServingRuntime", "InferenceService"}
    assert wrong(manifests) == []
    broken = copy.deepcopy(only("InferenceService", manifests))
    broken["spec"]["predictor"] |= {"minReplicas": "two", "grace": 3}
    del broken["spec"]["predictor"]["model"]["modelFormat"]
    assert len(wrong([broken])) == 3


def test_the_service_of_kserve_finds_its_runtime() -> None:
    """What the schemas do not say, and must agree."""
    manifests = build(KUBERNETES / "kserve")
    predictor = only("InferenceService", manifests)["spec"]["predictor"]
    runtimes = [m["spec"] for m in manifests if m["kind"] == "ServingRuntime"]
    assert len(runtimes) == 2
    model = predictor["model"]
    (runtime,) = (r for r in runtimes if model["protocolVersion"] in r["protocolVersions"])
    wanted = model["modelFormat"]
    assert wanted in [
        {"name": known["name"], "version": known["version"]}
        for known in runtime["supportedModelFormats"]
    ]
    for known in runtimes:
        (container,) = known["containers"]
        assert container["name"] == "kserve-container"
        # Of a pod, whose schema is known, with a mount that KServe adds.
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "runtime"},
            "spec": {
                "containers": [container],
                "terminationGracePeriodSeconds": predictor["terminationGracePeriodSeconds"],
            },
        }
        check(pod)
        assert environment(container)["FOVEATE_SERVE_REPOSITORY"] == "/mnt/models"
        delay, timeout = (
            float(environment(container)[f"FOVEATE_SERVE_SHUTDOWN_{name}"])
            for name in ("DELAY", "TIMEOUT")
        )
        grace = predictor["terminationGracePeriodSeconds"]
        assert grace == delay + timeout + 2
