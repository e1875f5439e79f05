"""How much of the engine's own speed `foveate batch` keeps.

python -m benchmarks.batch [--repository DIR] [--images DIR] [--rounds N]

The floor is a bare loop with the same threads: the server's own decoding and
resizing on as many threads as the server takes, up to 32 pictures ahead, and
ONNX Runtime on batches of eight with as many threads, in the process of the
loop. Against it stand `foveate batch --repository`, the same within a process,
and `foveate batch --address`, over gRPC to a server on this machine; and
`foveate batch --repository --cam`, which draws an overlay of each. Compared are
pictures a second, without the start of the processes: each reports the time from
its first picture to its last. The rounds of the four alternate, so that a
drifting machine does not favour one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine
from benchmarks.loops import looping
from benchmarks.request_cost import MODEL, ratio, summary
from benchmarks.server import serving

RESULTS = Path(__file__).parent / "results" / "batch.json"
TARGETS = {"in_process / floor": 0.95, "grpc / floor": 0.85, "with_overlays / in_process": 0.7}

COPIES = 6
"""Of the pictures, so that filling and emptying the pipeline weighs little."""


def floor_run(bundle: Path, images: Path) -> dict[str, object]:
    """Run the bare loop once; return its pictures a second and its best classes by path."""
    with looping("floor", bundle, images) as loop:
        answer = loop.run()
    best = answer["best"]
    paths = sorted(str(path) for path in images.rglob("*") if path.is_file())
    return {"rate": len(best) / answer["seconds"], "best": dict(zip(paths, best, strict=True))}


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
    """Alternate the four; return their pictures a second and how these compare."""
    load = os.getloadavg()[0]
    bundle = next(iter(sorted((repository / MODEL).glob("[0-9]*"))))
    names = ("floor", "in_process", "grpc", "with_overlays")
    rates: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, serving(repository) as server:
        copies, overlays = Path(folder) / "pictures", Path(folder) / "overlays"
        for number in range(COPIES):
            shutil.copytree(images, copies / str(number))
        for number in track(range(rounds + 1), "rounds", console=Console(stderr=True)):
            answers = {
                "floor": floor_run(bundle, copies),
                "in_process": batch_run(copies, "--repository", repository),
                "grpc": batch_run(copies, "--address", server.address),
                "with_overlays": batch_run(copies, "--repository", repository, "--cam", overlays),
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
            f"{name} / {other}": ratio(rates[name], rates[other])
            for name, other in (
                ("in_process", "floor"),
                ("grpc", "floor"),
                ("with_overlays", "in_process"),
            )
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
    options = parser.parse_args()
    if options.images is None:
        parser.error("--images DIR is needed where FOVEATE_IMAGENET_DIR is not set")
    images = Path(options.images)
    result = measure(options.repository, images, options.rounds)
    machine.save(result, options.out)
    report(result)
    Console(stderr=True).print(f"written to {options.out}")


if __name__ == "__main__":
    main()
