"""The machine that measurements belong to: its processor and its GPUs."""

import platform
import shutil
import subprocess
from pathlib import Path

_PROCESSORS = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Return the name of the processor, empty where the system does not have it."""
    # Only Linux has the file, and some containers hide it.
    if _PROCESSORS.exists():
        for line in _PROCESSORS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def processor_identity() -> str:
    """Return the processor's name with its family, model and stepping, where they are known.

    Virtual machines on different processors often have the same name.
    """
    numbers: dict[str, str] = {}
    if _PROCESSORS.exists():
        for line in _PROCESSORS.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in {"cpu family", "model", "stepping"}:
                numbers.setdefault(name.strip(), value.strip())
    return ", ".join([processor_name(), *(f"{name} {value}" for name, value in numbers.items())])


def gpu_names() -> tuple[str, ...]:
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
