"""How much of the engine's own speed `foveate batch` keeps, what overlays cost, and its memory.

python -m benchmarks.batch [--repository DIR] [--images DIR] [--rounds N] [--page FILE]

The floor is a bare loop with the same threads: the server's own decoding and
resizing on as many threads as the server takes, up to 32 pictures ahead, and
ONNX Runtime on batches of eight with as many threads, in the process of the
loop. Against it stand `foveate batch --repository`, the same within a process,
and `foveate batch --address`, over gRPC to a server on this machine; and
`foveate batch --repository --cam`, which draws an overlay of each. Compared are
pictures a second, without the start of the processes: each reports the time from
its first picture to its last. The rounds of the four alternate, so that a
drifting machine does not favour one.

The memory is the most that `foveate batch --address --cam` takes for pictures of
nearly as many pixels as a server admits, in each format.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from benchmarks.loops import looping
from benchmarks.request_cost import MODEL, ratio, summary
from benchmarks.server import serving
from foveate_runtime.options import option

RESULTS = Path(__file__).parent / "results" / "batch.json"
PAGE = pages.DOCS / "client" / "batch.md"
TARGETS = {"in_process / floor": 0.95, "grpc / floor": 0.85, "with_overlays / in_process": 0.7}

LARGE = (8000, 6200)
LARGEST_IN_SCANS = (6700, 4950)
"""The largest progressive JPEG in 4:4:4 that is drawn upon: all its coefficients are held."""
LARGE_FILES = 4
LARGE_KINDS: Mapping[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "a JPEG": (LARGE, {"format": "JPEG"}),
    "a progressive JPEG": (LARGE, {"format": "JPEG", "progressive": True}),
    "a progressive JPEG in 4:4:4": (
        LARGEST_IN_SCANS,
        {"format": "JPEG", "progressive": True, "subsampling": 0},
    ),
    "a PNG": (LARGE, {"format": "PNG"}),
}
"""The sizes of the pictures whose overlays memory is measured with, and how they are written."""

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


def peak_mebibytes(
    size: tuple[int, int], written: dict[str, Any], address: str, photograph: Path
) -> float:
    """Return the most memory of a run that draws overlays of large pictures of one kind."""
    foveate = Path(sys.executable).with_name("foveate")
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        with Image.open(photograph) as image:
            # Enlarged so, a PNG stays below the largest message.
            large = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
        first = pictures / f"0.{written['format'].lower()}"
        large.save(first, **written)
        for number in range(1, LARGE_FILES):
            shutil.copy(first, first.with_stem(str(number)))
        command = [foveate, "batch", pictures, "--out", Path(folder) / "results.jsonl"]
        command += ["--address", address, "--model", MODEL, "--cam", Path(folder) / "overlays"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
            peak = 0
            # What os.wait4 tells counts the memory of this process as well, from before exec.
            while run.poll() is None:
                status = Path(f"/proc/{run.pid}/status").read_text(encoding="ascii")
                found = re.search(r"VmHWM:\s+(\d+) kB", status)
                peak = max(peak, int(found[1]) if found else 0)
                time.sleep(0.02)
        drawn = len(list((Path(folder) / "overlays").rglob("*.jpg")))
        assert (run.returncode, drawn) == (0, LARGE_FILES), f"{written}: {drawn} overlays"
    return round(peak / 1024, 1)


def measure(repository: Path, images: Path, rounds: int) -> dict[str, object]:
    """Alternate the four; return their pictures a second and how these compare."""
    load = os.getloadavg()[0]
    bundle = next(iter(sorted((repository / MODEL).glob("[0-9]*"))))
    names = ("floor", "in_process", "grpc", "with_overlays")
    rates: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, serving(repository) as server:
        photograph = next(path for path in sorted(images.rglob("*")) if path.is_file())
        peaks = {
            kind: peak_mebibytes(size, written, server.address, photograph)
            for kind, (size, written) in LARGE_KINDS.items()
        }
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
        "large": [
            {
                "kind": kind,
                "megapixels": round(size[0] * size[1] / 1e6, 1),
                "peak_mebibytes": peaks[kind],
            }
            for kind, (size, _) in LARGE_KINDS.items()
        ],
        # Above nothing, others were at work on the machine, and the rates are theirs as well.
        "load_average_before": round(load, 2),
        "machine": machine.describe(),
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""
    named = {
        "floor": "a bare loop with the same decoder and engine",
        "in_process": "`--repository`",
        "grpc": "`--address`, to a server on the same machine",
        "with_overlays": "`--repository` with `--cam`",
    }
    rows = [
        [text, pages.middle(result["photographs_per_second"][name], 1)]
        for name, text in named.items()
    ]
    peaks = ", ".join(
        f"{kind['peak_mebibytes']:,.0f} MiB for {kind['kind']} of {kind['megapixels']} megapixels"
        for kind in result["large"]
    )
    head = (
        f"{result['photographs']} photographs, EfficientNet-Lite0 in fp32, "
        f"{result['machine']['cores']} cores, in photographs a second:"
    )
    memory = f"Drawing the overlays of large pictures takes the process {peaks} at most."
    return "\n\n".join([head, pages.table(["", "median (least to most)"], rows), memory])


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    rounds: int = option("of the comparison", default=5)


def main() -> None:
    """Parse the command line, measure, write the results and the page's part."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    result = measure(options.repository, options.images, options.rounds)
    script.finish(result, page_part, options)


if __name__ == "__main__":
    main()
