"""The machine and the versions that results belong to."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from foveate_bench.results import Record

PACKAGES = (
    "foveate-runtime",
    "grpcio",
    "mlcommons-loadgen",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "pillow",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "torch",
)


class Machine(Record):
    """The processor and the cores of it that this process may use, the GPUs and the versions."""

    processor: str
    cores: int
    memory_gib: float
    gpus: tuple[str, ...] = ()
    system: str
    python: str
    packages: dict[str, str]


def describe() -> Machine:
    """Return what the results of this process belong to."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpus=_gpus(),
        system=platform.platform(terse=True),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name))},
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _gpus() -> tuple[str, ...]:
    """Return the names and drivers of NVIDIA's GPUs; none where their tool is not installed."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    answer = subprocess.run(  # noqa: S603 - found on the path, its arguments are ours
        [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return tuple(answer.stdout.splitlines()) if answer.returncode == 0 else ()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
