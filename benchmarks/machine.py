"""The machine and the versions that a result belongs to, and the file that holds both."""

import json
from collections.abc import Mapping
from pathlib import Path

from foveate_bench import machine


def describe() -> dict[str, object]:
    """Return the processor, its cores, the memory and the versions, for a results file."""
    return machine.describe().model_dump()


def save(result: Mapping[str, object], path: Path) -> None:
    """Write a result as JSON, into a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
