"""What kustomize and the chart give, as Kubernetes would get it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
CHART = ROOT / "deploy/helm/foveate"
KUBECTL = Path(sys.executable).with_name("kubectl")

Manifest = dict[str, Any]


def documents(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def build(folder: Path) -> list[Manifest]:
    """Return what `kubectl kustomize` makes of a folder."""
    built = subprocess.run(
        [KUBECTL, "kustomize", folder], check=True, capture_output=True, text=True
    )
    return documents(built.stdout)


def build_with(components: list[str], folder: Path) -> list[Manifest]:
    """Return the base with some components, built in the empty folder `folder`."""
    # kustomize takes no absolute paths.
    (folder / "kubernetes").symlink_to(KUBERNETES)
    kustomization = {
        "resources": ["kubernetes/base"],
        "components": [f"kubernetes/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return build(folder)


def chart(values: dict[str, Any]) -> list[Manifest]:
    """Return what the chart gives with these values; raises what Helm does where they are bad."""
    with helm_python.Chart.load(str(CHART)) as loaded:
        loaded.validate_schema(values)
        rendered = loaded.render(values, name="foveate", namespace="default")
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    return [document for text in texts for document in documents(text)]


def example(name: str) -> dict[str, Any]:
    """Return one of the chart's files of values."""
    values: dict[str, Any] = yaml.safe_load((CHART / "examples" / name).read_text(encoding="utf-8"))
    return values


def only(kind: str, manifests: list[Manifest], name: str = "") -> Manifest:
    """Return the one manifest of a kind, and of a name where one is given."""
    (found,) = (m for m in manifests if m["kind"] == kind and name in {"", m["metadata"]["name"]})
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    """Return the specification of the server's pods."""
    spec: Manifest = only("Deployment", manifests, "foveate")["spec"]["template"]["spec"]
    return spec


def environment(container: Manifest) -> dict[str, str]:
    """Return the environment that a container's manifest sets."""
    return {variable["name"]: variable["value"] for variable in container["env"]}
