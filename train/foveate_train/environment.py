"""On what a result was measured: the machine and the versions."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

_PACKAGES = ("foveate-train", "torch", "torchvision", "timm", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that train."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def machine(device: torch.device) -> dict[str, str | int]:
    """Return what computes: a GPU by its name, or the processor, its cores and torch's threads."""
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
