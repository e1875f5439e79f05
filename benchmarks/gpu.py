"""Everything that a GPU can settle, in one command: `make gpu`.

Exports four networks, compares every engine's outputs with the golden answers of the bundle,
times every engine, and asks a server with 1 to 16 workers. On a machine without a GPU the same
steps run on the processor. Each step has a time limit; one that fails says why in its row, and
the others go on. It needs no network: the weights are the package's or random.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, pages
from benchmarks.server import serving
from foveate_bench.machine import describe
from foveate_runtime.backends.registry import BACKENDS

FOVEATE = Path(sys.executable).with_name("foveate")
PHOTOGRAPH = pages.DOCS / "images/coffee.jpg"
NETWORKS: Mapping[str, tuple[str, ...]] = {
    "efficientnet_lite0": ("package:efficientnet_lite0",),
    "resnet50": ("torchvision:resnet50", "--weights", "random:0"),
    "convnext_tiny": ("timm:convnext_tiny", "--weights", "random:0"),
    "vit_small": ("timm:vit_small_patch16_224", "--weights", "random:0"),
}
VARIANTS = ("fp32", "fp16")
"""int8 takes pictures to calibrate with: `--calibration` brings it."""

BATCHES = (1, 8, 32, 128)
LONGEST_STEP_SECONDS = 240.0


@dataclass
class Steps:
    """Runs commands until the time is over, and keeps a row of each.

    Attributes:
        until: the time of `time.monotonic` after which no step begins.
        rows: what was asked, whether it succeeded, its figures or its reason.
    """

    until: float
    console: Console
    rows: list[dict[str, Any]] = field(default_factory=list)

    def run(self, step: str, command: Sequence[str | Path], **named: object) -> str | None:
        """Run one command; return what it printed, None where it failed or came too late."""
        left = self.until - time.monotonic()
        row: dict[str, Any] = {"step": step, **named, "succeeded": False}
        self.rows.append(row)
        if left <= 0:
            row["reason"] = "the time was over"
            return None
        started = time.monotonic()
        try:
            ended = subprocess.run(
                list(map(str, command)),
                capture_output=True,
                text=True,
                check=False,
                timeout=min(left, LONGEST_STEP_SECONDS),
            )
        except subprocess.TimeoutExpired:
            row["reason"] = "it took too long"
            return None
        row["seconds"] = round(time.monotonic() - started, 1)
        row["succeeded"] = ended.returncode == 0
        if ended.returncode:
            row["reason"] = (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1:]
        told = "done" if row["succeeded"] else row["reason"]
        self.console.print(f"{step} {' '.join(map(str, named.values()))}: {told}")
        return ended.stdout if row["succeeded"] else None


def export(steps: Steps, networks: Iterable[str], repository: Path, options: Any) -> list[str]:
    """Export the networks; return those that were."""
    done = []
    for name in networks:
        command = [FOVEATE, "export", *NETWORKS[name], "--repository", repository, "--name", name]
        variants = list(VARIANTS)
        if options.calibration is not None:
            command += ["--calibration", options.calibration]
            variants.append("int8")
        if (repository / name).exists() or (
            steps.run("export", [*command, "--variants", ",".join(variants)], network=name)
            is not None
        ):
            done.append(name)
    return done


def verify(steps: Steps, networks: Iterable[str], repository: Path, device: str) -> None:
    """Compare the outputs of every engine with the golden answers."""
    kind = device.partition(":")[0]
    for name in networks:
        for backend, entry in BACKENDS.items():
            if kind in entry.devices:
                command = [FOVEATE, "verify", repository / name / "1", "--backend", backend]
                steps.run("verify", [*command, "--device", device], network=name, backend=backend)


def bench(steps: Steps, networks: Sequence[str], options: Any, device: str) -> None:
    """Time the engines by themselves."""
    out = options.out.with_suffix("") / "bench"
    for name in networks:
        command = [FOVEATE, "bench", "--repository", options.repository, "--model", name]
        command += ["--device", device, "--batch", ",".join(map(str, options.batches))]
        command += ["--outputs", "logits,cam", "--rounds", "3", "--seconds", options.seconds]
        steps.run("bench", [*command, "--no-roofline", "--out", out / name], network=name)


def serve(steps: Steps, network: str, options: Any, device: str) -> None:
    """Ask a server with ever more workers for a photograph."""
    for workers in options.workers:
        if workers > (os.cpu_count() or 1):
            break
        named = {"network": network, "workers": workers}
        arguments = ("--device", device, "--workers", str(workers))
        try:
            with serving(options.repository, *arguments, log=options.out.with_suffix(".log")) as to:
                command = [FOVEATE, "load", PHOTOGRAPH, "--address", to.address, "--json"]
                command += ["--model", network, "--concurrency", 32 * workers]
                told = steps.run("serve", [*command, "--duration", 6 * options.seconds], **named)
        except RuntimeError as error:
            steps.rows.append({"step": "serve", **named, "succeeded": False, "reason": str(error)})
            continue
        if told is not None:
            steps.rows[-1]["rate"] = json.loads(told)["targets"][0]["rate"]


def page_part(result: Mapping[str, Any]) -> str:
    """Return a table of the steps."""
    rows = [
        [
            " ".join(
                str(row[key]) for key in ("step", "network", "backend", "workers") if key in row
            ),
            f"{row['seconds']:.0f} s" if "seconds" in row else "",
            f"{row['rate']:.0f} a second"
            if "rate" in row
            else "done"
            if row["succeeded"]
            else str(row["reason"]),
        ]
        for row in result["rows"]
    ]
    return pages.table(["step", "took", "result"], rows)


def main() -> int:
    """Run the steps; return 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--minutes", type=float, default=8.5, help="no step begins after these")
    parser.add_argument("--calibration", type=Path, help="pictures, which also bring int8")
    parser.add_argument("--repository", type=Path, default=Path("gpu-output/repository"))
    parser.add_argument("--out", type=Path, default=Path("gpu-output/gpu.json"))
    options = parser.parse_args()
    device = "cuda:0" if describe().gpus else "cpu"
    console = Console(stderr=True)
    steps = Steps(time.monotonic() + 60 * options.minutes, console)
    done = export(steps, options.networks, options.repository, options)
    verify(steps, done, options.repository, device)
    if done:
        serve(steps, done[0], options, device)
    bench(steps, done, options, device)
    result = {
        "benchmark": "gpu",
        "device": device,
        "machine": machine.describe(),
        "rows": steps.rows,
    }
    machine.save(result, options.out)
    page = options.out.with_suffix(".md")
    page.write_text(f"# On {device}\n\n{page_part(result)}\n", encoding="utf-8")
    console.print(f"written to {options.out} and {page}; the engines' reports lie beside them")
    return 0 if all(row["succeeded"] for row in steps.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
