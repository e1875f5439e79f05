"""Bare loops over photographs in ONNX Runtime: what the work costs without a server.

python -m benchmarks.loops KIND BUNDLE --images DIR

For each line on stdin, the loop classifies every photograph below DIR once and
prints a line of JSON: the seconds and CPU-seconds that it took, and the best
classes. KIND is `floor`, with the server's own decoding and resizing;
`obvious`, with Pillow's: the whole picture decoded, the whole of it resized,
the centre cut out; or `alone`, the floor with one photograph at a time, which
prints the seconds of each as well. The engine is the server's, with the fp32
graph, on as many threads as there are cores, and so is the decoding but in
`alone`; batches are of eight, decoded up to four batches ahead.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare

MAX_BATCH = 8
AHEAD = 32

Pixels = NDArray[np.uint8]


def server_pixels(path: Path, spec: InputSpec) -> Pixels:
    """Decode and resize as the server does."""
    return prepare(path.read_bytes(), spec, ImageLimits())[0]


def obvious_pixels(path: Path, spec: InputSpec) -> Pixels:
    """Decode the whole picture, resize the whole of it, and cut the centre out."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        picture = image.convert("RGB")
    # torchvision's Resize truncates the longer side, and its CenterCrop rounds the corner.
    shorter = min(picture.size)
    width, height = (int(spec.resize * side / shorter) for side in picture.size)
    left, top = round((width - spec.width) / 2), round((height - spec.height) / 2)
    resized = picture.resize((width, height), Image.Resampling[spec.interpolation.upper()])
    return np.asarray(resized.crop((left, top, left + spec.width, top + spec.height)))


def classify_batches(
    paths: Sequence[Path], pixels: Callable[[Path], Pixels], runner: Runner
) -> list[int]:
    """Return the best class of each picture; decoding goes on while the engine runs."""
    best: list[int] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        decoded = _ahead(threads, pixels, paths)
        while batch := list(islice(decoded, MAX_BATCH)):
            logits = runner.run({"image": np.stack(batch)}, ["logits"])["logits"]
            best += logits.argmax(axis=1).tolist()
    return best


def _ahead(
    threads: ThreadPoolExecutor, work: Callable[[Path], Pixels], paths: Sequence[Path]
) -> Iterator[Pixels]:
    """Yield the results in order, with at most AHEAD of them begun."""
    begun: deque[Future[Pixels]] = deque()
    for path in paths:
        begun.append(threads.submit(work, path))
        if len(begun) == AHEAD:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def classify_alone(
    paths: Sequence[Path], pixels: Callable[[Path], Pixels], runner: Runner
) -> tuple[list[int], list[float]]:
    """Return the best class of each picture and the seconds that it took."""
    best, latencies = [], []
    for path in paths:
        started = time.perf_counter()
        logits = runner.run({"image": pixels(path)[None]}, ["logits"])["logits"]
        latencies.append(time.perf_counter() - started)
        best.append(int(logits[0].argmax()))
    return best, latencies


@dataclass(frozen=True)
class Loop:
    """A loop in a process of its own."""

    process: subprocess.Popen[str]

    def run(self) -> dict[str, Any]:
        """Classify every photograph once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@contextmanager
def looping(kind: str, bundle: Path, images: Path) -> Iterator[Loop]:
    """Start a loop, which waits to be run, and end it afterwards."""
    command = [sys.executable, "-m", "benchmarks.loops", kind, bundle, "--images", images]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Loop(process)
        assert process.stdin is not None
        process.stdin.close()


def main() -> None:
    """Parse the command line and run the loop for each line of stdin."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=("floor", "obvious", "alone"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    paths = sorted(path for path in options.images.rglob("*") if path.is_file())
    way = obvious_pixels if options.kind == "obvious" else server_pixels
    pixels = partial(way, spec=bundle.manifest.input)
    with create_runner(bundle, variant="fp32", backend="onnxruntime") as runner:
        for _ in sys.stdin:
            cpu, started = time.process_time(), time.monotonic()
            answer: dict[str, Any] = {}
            if options.kind == "alone":
                answer["best"], answer["latencies"] = classify_alone(paths, pixels, runner)
            else:
                answer["best"] = classify_batches(paths, pixels, runner)
            answer["seconds"] = time.monotonic() - started
            answer["cpu"] = time.process_time() - cpu
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
