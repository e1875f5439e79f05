"""What the provisioned dashboard asks Prometheus."""

import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy/grafana/dashboards/foveate.json"

_VARIABLES = {
    "$__rate_interval": "1m",
    "$model": ".*",
    "$instance": ".*",
    "$quantile": "0.99",
}
"""What Grafana would put in for its own variables, and for the dashboard's when all is chosen."""


class Query(NamedTuple):
    panel: str
    expression: str

    @property
    def metrics(self) -> set[str]:
        return set(re.findall(r"\b(?:foveate|process|nv)_\w+", self.expression))


def queries() -> list[Query]:
    """Return every query of every panel, without variables."""
    found = []
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in _VARIABLES.items():
                expression = expression.replace(name, value)
            found.append(Query(panel["title"], expression))
    return found
