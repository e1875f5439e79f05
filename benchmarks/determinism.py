"""Whether a picture's answer has the same bits whatever batch it is in.

    python -m benchmarks.determinism [--repository DIR] [--out FILE] [--page FILE]

Every engine that is installed runs every variant that it takes of each classifier in
the repository, on the pictures that the bundle keeps. Each picture is run alone and in
batches, as the first and as the last of them, with others beside it; with one thread and
with as many as there are cores; alone on the cores and on its share of them; and all of
that in processes of their own, started anew. Logits that have the same bits are equal
whatever is computed from them. Where they are not, the largest difference counts.

Nothing is timed, so that other work on the machine does not matter.
"""

import argparse
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.folder import find_version, model_names
from foveate_runtime.bundle.golden import open_golden
from foveate_runtime.bundle.manifest import IMAGE_INPUT, LOGITS_OUTPUT
from foveate_runtime.cores import count_cores
from foveate_runtime.options import option

RESULTS = Path(__file__).parent / "results" / "determinism.json"
PAGE = pages.DOCS / "serving" / "batching.md"

BACKENDS = ("onnxruntime", "openvino")
SIZES = (1, 2, 3, 4, 8)
PICTURES = 8
STARTS = 2

AXES = {
    "a new start": (0,),
    "its place and company in a batch": (4,),
    "the size of the batch": (3,),
    "threads, and other batches at one time": (1, 2),
    "all of it": (0, 1, 2, 3, 4),
}
"""What changes, and the axes of the measured logits along which it does."""

Logits = npt.NDArray[np.float32]


def run(bundle: Bundle, variant: str, backend: str) -> Logits:
    """Return the logits [threads, share, size, place, picture, class]; raises BackendError."""
    golden = open_golden(bundle)
    assert golden is not None
    images = golden.images[:PICTURES]
    count = len(images)
    found = []
    for threads in sorted({1, count_cores()}):
        with create_runner(
            bundle, variant=variant, backend=backend, device="cpu", threads=threads
        ) as runner:
            for share in (False, True):
                for size in SIZES:
                    for place in (0, size - 1):
                        for picture in range(count):
                            # Others follow it, and those before it wrap around.
                            batch = [(picture - place + other) % count for other in range(size)]
                            logits = runner.run(
                                {IMAGE_INPUT: images[batch]}, [LOGITS_OUTPUT], share_cores=share
                            )[LOGITS_OUTPUT]
                            found.append(logits[place])
    shape = (-1, 2, len(SIZES), 2, count, bundle.manifest.classes)
    return np.stack(found).reshape(shape)


def compare(logits: Logits) -> dict[str, dict[str, float | int | bool]]:
    """Return what changes the answers [start, threads, share, size, place, picture, class]."""
    exact = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    scores = exact / exact.sum(-1, keepdims=True)
    best = logits.argmax(-1)
    return {
        name: {
            "same_bits": bool((logits.max(along) == logits.min(along)).all()),
            "logits": float((logits.max(along) - logits.min(along)).max()),
            "scores": float((scores.max(along) - scores.min(along)).max()),
            "best_changes": int((best.max(along) != best.min(along)).sum()),
        }
        for name, along in AXES.items()
    }


def measure(repository: Path) -> dict[str, object]:
    """Run every variant of every classifier on every engine, each start in its own process."""
    cases = [
        (name, variant.name, backend)
        for name in model_names(repository)
        for variant in Bundle.open(find_version(repository, name)).manifest.variants
        for backend in BACKENDS
    ]
    rows = []
    for name, variant, backend in track(cases, "engines", console=Console(stderr=True)):
        starts = [_start(repository, name, variant, backend) for _ in range(STARTS)]
        if any(start is None for start in starts):
            continue
        logits = np.stack([start for start in starts if start is not None])
        rows.append(
            {
                "model": name,
                "variant": variant,
                "backend": backend,
                "pictures": logits.shape[-2],
                "largest_logit": float(np.abs(logits).max()),
                "changes": compare(logits),
            }
        )
    return {
        "benchmark": "determinism",
        "sizes": SIZES,
        "starts": STARTS,
        "rows": rows,
        "machine": machine.describe(),
    }


def _start(repository: Path, name: str, variant: str, backend: str) -> Logits | None:
    """Return the logits of a process of its own, None where the engine takes no such variant."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.npy"
        command = [sys.executable, "-m", "benchmarks.determinism", "--repository", repository]
        command += ["--one", name, variant, backend, "--out", out]
        subprocess.run(command, check=True)
        return np.load(out) if out.exists() else None


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""
    names = list(result["rows"][0]["changes"])
    rows = [
        [
            f"`{row['model']}`, {row['variant']}, {row['backend']}",
            *(_cell(row["changes"][name]) for name in names),
        ]
        for row in result["rows"]
    ]
    changed = sum(row["changes"]["all of it"]["best_changes"] for row in result["rows"])
    largest = max(row["changes"]["all of it"]["scores"] for row in result["rows"])
    sizes = ", ".join(map(str, result["sizes"]))
    return "\n\n".join(
        [
            textwrap.fill(
                "The largest difference of a logit when something changes; 0 means the same bits. "
                f"The pictures of each bundle's golden answers, batches of {sizes}, "
                f"{result['starts']} starts, on {result['machine']['processor']}.",
                100,
            ),
            pages.table(["", *names], rows),
            (
                f"No score differs by more than {largest:.1g}, and the best class changes for "
                f"{changed or 'no'} picture{'s' * (changed > 1)}."
            ),
        ]
    )


def _cell(change: Mapping[str, Any]) -> str:
    return "0" if change["same_bits"] else f"{change['logits']:.1g}"


@dataclass(frozen=True, kw_only=True)
class Options(script.Options):
    """The command line; `one` is the model, variant and backend of a single run."""

    one: tuple[str, ...] | None = option(argparse.SUPPRESS, action="store", nargs=3, default=None)


def main() -> int:
    """Measure, or run one engine once for that; return the exit code."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    if options.one is None:
        script.finish(measure(options.repository), page_part, options)
        return 0
    return _one(options.repository, options.one, options.out)


def _one(repository: Path, case: Sequence[str], out: Path) -> int:
    name, variant, backend = case
    try:
        logits = run(Bundle.open(find_version(repository, name)), variant, backend)
    except BackendError as error:
        print(f"{name}, {variant} on {backend}: {error}", file=sys.stderr)
        return 0
    np.save(out, logits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
