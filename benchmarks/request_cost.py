"""What a lone request costs above the work that it cannot do without.

python -m benchmarks.request_cost [--repository DIR] [--images DIR] [--rounds N]

The photographs are the JPEG files below --images, or FOVEATE_IMAGENET_DIR, or
scikit-image's.

The floor is a plain loop: the server's own decoding and resizing, then one
call of ONNX Runtime, one photograph at a time. Against it stand the same
photographs sent one after another to a real server in another process, with
the five best classes as the answer, then with the raw class activation maps of
these five as well. Compared are CPU-seconds: the loop's process against the
server's whole process tree. The rounds of the three alternate, so that a
drifting machine does not favour one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage import data

from benchmarks import machine
from benchmarks.server import Server, serving
from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate.v1.explanation_pb2 import CamOptions
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare

MODEL = "efficientnet_lite0"
RESULTS = Path(__file__).parent / "results" / "request_cost.json"
SUFFIXES = {".jpg", ".jpeg"}


def floor_loop(bundle: Path, images: Path) -> None:
    """Run the plain loop once for each line of stdin; print its CPU-seconds and best classes."""
    opened = Bundle.open(bundle)
    pictures = read_pictures(images)
    with create_runner(opened) as runner:
        for _ in sys.stdin:
            start = time.process_time()
            best = []
            for picture in pictures:
                pixels, _ = prepare(picture, opened.manifest.input, ImageLimits())
                logits = runner.run({"image": pixels[None]}, ["logits"])["logits"]
                best.append(int(logits[0].argmax()))
            print(json.dumps({"cpu": time.process_time() - start, "best": best}), flush=True)


def read_pictures(images: Path) -> list[bytes]:
    """Return the JPEG files below `images`, in the order of their names."""
    paths = sorted(p for p in images.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"no JPEG files below {images}")
    return [path.read_bytes() for path in paths]


def write_photographs(folder: Path) -> Path:
    """Write scikit-image's photographs as JPEG files into `folder`, and return it."""
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg", quality=90)
    return folder


def server_round(
    server: Server, stub: ClassifierServiceStub, requests: Sequence[ClassifyRequest]
) -> dict[str, object]:
    """Send `requests` one after another; return the server's CPU-seconds and the best classes."""
    start = server.cpu_seconds()
    best = [stub.Classify(request, timeout=30).predictions[0].class_id for request in requests]
    return {"cpu": server.cpu_seconds() - start, "best": best}


def measure(repository: Path, images: Path, rounds: int) -> dict[str, object]:
    """Alternate the three; return their CPU-milliseconds a photograph and the server's memory."""
    pictures = read_pictures(images)
    plain = [ClassifyRequest(model=MODEL, encoded=picture, top_k=5) for picture in pictures]
    explained = [
        ClassifyRequest(model=MODEL, encoded=picture, top_k=5, cam=CamOptions(top=5))
        for picture in pictures
    ]
    bundle = next(iter(sorted((repository / MODEL).glob("[0-9]*"))))
    loop_command = [sys.executable, "-m", "benchmarks.request_cost", "--floor", bundle]
    samples: dict[str, list[float]] = {"floor": [], "server": [], "server_cam5": []}
    with (
        serving(repository) as server,
        grpc.insecure_channel(server.address) as channel,
        subprocess.Popen(
            [*loop_command, "--images", images],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as loop,
    ):
        assert loop.stdin is not None
        assert loop.stdout is not None
        idle = server.resident_bytes()
        stub = ClassifierServiceStub(channel)
        for number in track(range(rounds + 1), "rounds", console=Console(stderr=True)):
            print(file=loop.stdin, flush=True)
            answers = {
                "floor": json.loads(loop.stdout.readline()),
                "server": server_round(server, stub, plain),
                "server_cam5": server_round(server, stub, explained),
            }
            for name, answer in answers.items():
                agreement = np.mean(np.equal(answer["best"], answers["floor"]["best"]))
                assert agreement == 1.0, f"{name} agrees with the floor on {agreement:.1%}"
                if number > 0:  # the first round warms up
                    samples[name].append(1000 * answer["cpu"] / len(pictures))
        loop.stdin.close()
    return {
        "benchmark": "request_cost",
        "model": MODEL,
        "photographs": len(pictures),
        "rounds": rounds,
        "cpu_ms_per_photograph": {name: summary(values) for name, values in samples.items()},
        "ratios": {
            "server / floor": ratio(samples["server"], samples["floor"]),
            "server with top-5 CAM / server": ratio(samples["server_cam5"], samples["server"]),
        },
        "server_idle_rss_mib": round(idle / 2**20, 1),
        "machine": machine.describe(),
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the smallest, the middle and the largest value."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return the summary of the ratios, round by round."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def report(result: dict[str, object]) -> None:
    """Print the result as a table."""
    for heading in ("cpu_ms_per_photograph", "ratios"):
        table = Table("", "min", "median", "max", title=heading.replace("_", " "))
        rows = result[heading]
        assert isinstance(rows, dict)
        for name, row in rows.items():
            table.add_row(name, *(str(row[key]) for key in ("min", "median", "max")))
        Console().print(table)
    Console().print(f"server, idle: {result['server_idle_rss_mib']} MiB resident")


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("demo-output/repository"))
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--floor", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.floor:
        floor_loop(options.floor, options.images)
        return
    with tempfile.TemporaryDirectory() as folder:
        images = Path(options.images or write_photographs(Path(folder)))
        result = measure(options.repository, images, options.rounds)
    machine.save(result, options.out)
    report(result)
    Console(stderr=True).print(f"written to {options.out}")


if __name__ == "__main__":
    main()
