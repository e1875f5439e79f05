"""How much of the engine's own speed `foveate batch` keeps.

python -m benchmarks.batch [--repository DIR] [--images DIR] [--rounds N]

The floor is a bare loop with the same threads: the server's own decoding and
resizing on as many threads as the server takes, up to 32 pictures ahead, and
ONNX Runtime on batches of eight with as many threads, in the process of the
loop. Against it stand `foveate batch --repository`, the same within a process,
and `foveate batch --address`, over gRPC to a server on this machine. Compared
are pictures a second, without the start of the processes: each reports the
time from its first picture to its last. The rounds of the three alternate, so
that a drifting machine does not favour one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine
from benchmarks.request_cost import MODEL, ratio, summary
from benchmarks.server import serving
from foveate_serve.backends.registry import create_runner
from foveate_serve.bundle.bundle import Bundle
from foveate_serve.imaging.decode import ImageLimits
from foveate_serve.imaging.transform import prepare

RESULTS = Path(__file__).parent / "results" / "batch.json"
TARGETS = {"in_process / floor": 0.95, "grpc / floor": 0.85}

MAX_BATCH = 8
AHEAD = 32
COPIES = 6
"""Of the pictures, so that filling and emptying the pipeline weighs little."""


def floor_loop(bundle: Path, images: Path) -> None:
    """Run the bare loop once; print its pictures a second and its best classes by path."""
    opened = Bundle.open(bundle)
    paths = sorted(path for path in images.rglob("*") if path.is_file())
    best: list[int] = []
    with (
        create_runner(opened) as runner,
        ThreadPoolExecutor(os.cpu_count() or 1) as threads,
    ):

        def pixels(path: Path) -> NDArray[np.uint8]:
            return prepare(path.read_bytes(), opened.manifest.input, ImageLimits())[0]

        started = time.monotonic()
        decoded = _ahead(threads, pixels, paths)
        while batch := list(islice(decoded, MAX_BATCH)):
            logits = runner.run({"image": np.stack(batch)}, ["logits"])["logits"]
            best += logits.argmax(axis=1).tolist()
        seconds = time.monotonic() - started
    found = dict(zip(map(str, paths), best, strict=True))
    print(json.dumps({"rate": len(paths) / seconds, "best": found}))


def _ahead(
    threads: ThreadPoolExecutor, work: Callable[[Path], NDArray[np.uint8]], paths: Sequence[Path]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the results in order, with at most AHEAD of them begun."""
    begun: deque[Future[NDArray[np.uint8]]] = deque()
    for path in paths:
        begun.append(threads.submit(work, path))
        if len(begun) == AHEAD:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def batch_run(images: Path, *source: object) -> dict[str, object]:
    """Run `foveate batch` once; return its pictures a second and its best classes by path."""
    foveate = Path(sys.executable).with_name("foveate")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.jsonl"
        command = [foveate, "batch", images, "--out", out, "--model", MODEL, "--json", *source]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {
        "rate": json.loads(run.stdout)["images_per_second"],
        "best": {row["image"]: row["class_1"] for row in rows},
    }


def measure(repository: Path, images: Path, rounds: int) -> dict[str, object]:
    """Alternate the three; return their pictures a second and how these compare."""
    load = os.getloadavg()[0]
    bundle = next(iter(sorted((repository / MODEL).glob("[0-9]*"))))
    rates: dict[str, list[float]] = {"floor": [], "in_process": [], "grpc": []}
    with tempfile.TemporaryDirectory() as folder, serving(repository) as server:
        copies = Path(folder)
        for number in range(COPIES):
            shutil.copytree(images, copies / str(number))
        floor = [sys.executable, "-m", "benchmarks.batch", "--floor", bundle, "--images", copies]
        for number in track(range(rounds + 1), "rounds", console=Console(stderr=True)):
            answers = {
                "floor": json.loads(subprocess.run(floor, check=True, capture_output=True).stdout),
                "in_process": batch_run(copies, "--repository", repository),
                "grpc": batch_run(copies, "--address", server.address),
            }
            expected = answers["floor"]["best"]
            for name, answer in answers.items():
                assert answer["best"] == expected, f"{name} does not agree with the floor"
                if number > 0:  # the first round warms up
                    rates[name].append(answer["rate"])
    return {
        "benchmark": "batch",
        "model": MODEL,
        "photographs": len(expected),
        "rounds": rounds,
        "photographs_per_second": {name: summary(values) for name, values in rates.items()},
        "ratios": {
            f"{name} / floor": ratio(rates[name], rates["floor"]) for name in ("in_process", "grpc")
        },
        "targets": TARGETS,
        # Above nothing, others were at work on the machine, and the rates are theirs as well.
        "load_average_before": round(load, 2),
        "machine": machine.describe(),
    }


def report(result: dict[str, object]) -> None:
    """Print the result as a table."""
    for heading in ("photographs_per_second", "ratios"):
        table = Table("", "min", "median", "max", title=heading.replace("_", " "))
        rows = result[heading]
        assert isinstance(rows, dict)
        for name, row in rows.items():
            table.add_row(name, *(str(row[key]) for key in ("min", "median", "max")))
        Console().print(table)


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("demo-output/repository"))
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--floor", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.images is None:
        parser.error("--images DIR is needed where FOVEATE_IMAGENET_DIR is not set")
    images = Path(options.images)
    if options.floor:
        floor_loop(options.floor, images)
        return
    result = measure(options.repository, images, options.rounds)
    machine.save(result, options.out)
    report(result)
    Console(stderr=True).print(f"written to {options.out}")


if __name__ == "__main__":
    main()
