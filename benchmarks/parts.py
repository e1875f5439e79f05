"""What a request cannot do without, each part by itself.

python -m benchmarks.parts BUNDLE --images DIR [--variant NAME] [--backend NAME]

Prints a line of JSON: the CPU-ms that a picture takes to be decoded, to be resized,
and in the engine, in the batches that the server makes of many requests at once: of
eight, or of an engine that has several lanes their share of eight on one thread.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.imaging.decode import ImageLimits, decode
from foveate_runtime.imaging.transform import DRAFT_MARGIN, fit, prepare

T = TypeVar("T")

PARTS = ("decode", "resize", "engine")
BATCH = 8
SECONDS = 1.5
"""How long each part is done again and again."""


def measure(bundle: Path, images: Path, *, variant: str, backend: str) -> dict[str, float]:
    """Measure the parts in a process of their own, of the pictures below `images`."""
    command = [sys.executable, "-m", "benchmarks.parts", bundle, "--images", images]
    command += ["--variant", variant, "--backend", backend]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    parts: dict[str, float] = json.loads(answer)
    return parts


def measure_here(
    bundle: Bundle, files: Sequence[bytes], *, variant: str, backend: str
) -> dict[str, float]:
    """Return the CPU-ms of each part; small pictures of the classifier's size are not resized."""
    spec, limits = bundle.manifest.input, ImageLimits()
    whole = spec.resize == min(spec.height, spec.width)
    to_pixels = partial(prepare, spec=spec, limits=limits)
    to_picture = partial(
        decode, channels=spec.channels, limits=limits, shorter_side=spec.resize * DRAFT_MARGIN
    )
    decoded = [] if whole else [to_picture(data) for data in files]
    with create_runner(bundle, variant=variant, backend=backend) as runner:
        size = max(1, BATCH // runner.lanes)
        batch = {"image": np.stack([to_pixels(data)[0] for data in files[:size]])}
        run = partial(runner.run, outputs=["logits"], share_cores=runner.lanes > 1)
        return {
            "decode": _cpu_ms(to_pixels if whole else to_picture, files),
            "resize": _cpu_ms(partial(fit, spec=spec), decoded),
            "engine": _cpu_ms(run, [batch]) / size,
        }


def _cpu_ms(work: Callable[[T], object], things: Sequence[T]) -> float:
    """Return the processor time of one of the things, done in turn; 0 where there are none."""
    if not things:
        return 0.0
    for thing in things:  # warms up
        work(thing)
    done, start, until = 0, time.process_time(), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        for thing in things:
            work(thing)
        done += len(things)
    return 1000 * (time.process_time() - start) / done


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--variant", default="fp32")
    parser.add_argument("--backend", default="onnxruntime")
    options = parser.parse_args()
    paths = sorted(path for path in options.images.rglob("*") if path.is_file())
    found = measure_here(
        Bundle.open(options.bundle),
        [path.read_bytes() for path in paths],
        variant=options.variant,
        backend=options.backend,
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
