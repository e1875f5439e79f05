"""Write what kustomize builds upon from the chart: the Deployment is written once, there."""

import sys
from pathlib import Path

import helm_python

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy/helm/foveate"
KUBERNETES = ROOT / "deploy/kubernetes"
HEADER = "# Rendered from the chart deploy/helm/foveate by `make manifests`: change that.\n"

NAME = "foveate"
NAMESPACE = "default"

Values = dict[str, object]

FILES: dict[str, tuple[Values, tuple[str, ...]]] = {
    "base/foveate.yaml": (
        {},
        ("serviceaccount", "deployment", "services", "disruption", "networkpolicy"),
    ),
    "components/autoscaling/hpa.yaml": ({"autoscaling": {"kind": "hpa"}}, ("autoscaling",)),
    "components/keda/scaledobject.yaml": ({"autoscaling": {"kind": "keda"}}, ("autoscaling",)),
    "components/monitoring/servicemonitor.yaml": (
        {"monitoring": {"enabled": True}},
        ("monitoring",),
    ),
}
"""Each file, the values of the chart that it is rendered with, and the templates that it takes."""


def render(values: Values) -> dict[str, str]:
    """Return what the chart's templates give, by their names without folder and suffix."""
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name=NAME, namespace=NAMESPACE)
    return {
        Path(path).stem: text.strip() + "\n"
        for path, text in rendered.items()
        if path.endswith(".yaml") and text.strip()
    }


def manifests() -> dict[Path, str]:
    """Return the text of every rendered file."""
    files = {}
    for path, (values, templates) in FILES.items():
        rendered = render(values)
        files[KUBERNETES / path] = HEADER + "---\n".join(rendered[name] for name in templates)
    return files


def main() -> int:
    """Write the files; return the exit code."""
    for path, text in manifests().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
