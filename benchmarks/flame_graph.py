"""Where the time of a server under load goes, as a flame graph of its Python functions.

    python -m benchmarks.flame_graph [--repository DIR] [--images DIR] [--seconds N] [--out FILE]

`foveate serve` runs in fp32 in ONNX Runtime and answers 32 requests at once from
`foveate load`, while py-spy (`pip install py-spy`) samples it fifty times a second. To
run where nothing else does: py-spy counts a thread that waits for a core as one that runs.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import pages, script
from benchmarks.request_cost import MODEL
from benchmarks.server import HELD, serving
from foveate_runtime.options import option, parse

OUT = pages.DOCS / "images" / "flame-graph.svg"
WARM_UP = 5
"""Seconds of the load before the first sample, and after the last one."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    repository: Path = option("of the classifiers", default=Path("demo-output/repository"))
    images: Path = script.folder("the photographs", "FOVEATE_IMAGENET_DIR")
    seconds: int = option("of the samples", default=30)
    out: Path = option("the picture", default=OUT)


def record(options: Options) -> None:
    """Put a server under load, and draw what py-spy samples of it."""
    programs = Path(sys.executable).parent
    with serving(options.repository, *HELD) as server:
        load = [
            *(programs / "foveate", "load", options.images, "--address", server.address),
            *("--model", MODEL, "--concurrency", "32", "--warmup", str(WARM_UP)),
            *("--duration", str(options.seconds + WARM_UP)),
        ]
        spy = [
            *(programs / "py-spy", "record", "--function", "--threads", "--rate", "50"),
            *("--duration", str(options.seconds), "--pid", str(server.process.pid)),
            # Its title is the command, in which the folder has no place.
            *("--output", options.out.name),
        ]
        with subprocess.Popen(load, stdout=subprocess.DEVNULL) as loading:
            try:
                loading.wait(WARM_UP)
            except subprocess.TimeoutExpired:
                subprocess.run(spy, check=True, cwd=options.out.parent)
            if loading.wait():
                raise RuntimeError("the load failed")


def main() -> None:
    """Parse the command line, and record."""
    options = parse(
        Options,
        sys.argv[1:],
        prog="python -m benchmarks.flame_graph",
        description=(__doc__ or "").partition("\n")[0],
        epilog="",
    )
    record(options)
    print(f"drawn in {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
