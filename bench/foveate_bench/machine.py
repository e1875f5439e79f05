"""The machine and the versions that results belong to."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import psutil

from foveate_bench.results import Record
from foveate_runtime.machine import gpu_names, processor_name

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
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpus=gpu_names(),
        system=platform.platform(terse=True),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name))},
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
