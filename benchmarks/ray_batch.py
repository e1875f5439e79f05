"""What `foveate batch --engine ray` costs beside the same run in one process.

python -m benchmarks.ray_batch --python FILE [--repository DIR] [--images DIR]
    [--copies N] [--rounds N]

FILE is the Python of an environment that has foveate-client[ray] and foveate-serve[cpu].
Both sides read the same copies of the photographs and must find the same
classes. Compared are pictures a second from the first picture to the last as
the command tells them, where Ray's workers start and open the model within
that time, and the seconds of the whole command, where Ray itself starts as
well. The rounds alternate, so that a drifting machine does not favour one.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks import machine
from benchmarks.request_cost import MODEL, ratio, summary

RESULTS = Path(__file__).parent / "results" / "ray_batch.json"
ENGINES = ("here", "ray")


def batch_run(python: Path, images: Path, repository: Path, engine: str) -> dict[str, object]:
    """Run `foveate batch` once; return its rate, the seconds of all, and the best classes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.jsonl"
        command = [python, "-m", "foveate_client", "batch", images, "--out", out, "--json"]
        source = ["--repository", repository, "--model", MODEL, "--engine", engine]
        began = time.monotonic()
        run = subprocess.run([*command, *source], check=True, stdout=subprocess.PIPE)
        seconds = time.monotonic() - began
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {
        "rate": json.loads(run.stdout)["images_per_second"],
        "seconds": seconds,
        "best": {row["image"]: row["class_1"] for row in rows},
    }


def measure(
    python: Path, repository: Path, images: Path, copies: int, rounds: int
) -> dict[str, object]:
    """Alternate the two; return their pictures a second, their seconds, and how these compare."""
    load = os.getloadavg()[0]
    rates: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder)
        for number in range(copies):
            shutil.copytree(images, copied / str(number))
        for _ in track(range(rounds), "rounds", console=Console(stderr=True)):
            answers = {engine: batch_run(python, copied, repository, engine) for engine in ENGINES}
            assert answers["ray"]["best"] == answers["here"]["best"], "the engines disagree"
            for engine, answer in answers.items():
                rates[engine].append(answer["rate"])
                seconds[engine].append(answer["seconds"])
    return {
        "benchmark": "ray_batch",
        "model": MODEL,
        "photographs": len(answers["here"]["best"]),
        "rounds": rounds,
        "photographs_per_second": {name: summary(values) for name, values in rates.items()},
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "ratios": {"ray / here": ratio(rates["ray"], rates["here"])},
        # Above nothing, others were at work on the machine, and the rates are theirs as well.
        "load_average_before": round(load, 2),
        "machine": machine.describe(),
    }


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--repository", type=Path, default=Path("demo-output/repository"))
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.images is None:
        parser.error("--images DIR is needed where FOVEATE_IMAGENET_DIR is not set")
    result = measure(
        options.python, options.repository, Path(options.images), options.copies, options.rounds
    )
    machine.save(result, options.out)
    Console().print_json(data={key: result[key] for key in ("photographs_per_second", "seconds")})
    Console(stderr=True).print(f"written to {options.out}")


if __name__ == "__main__":
    main()
