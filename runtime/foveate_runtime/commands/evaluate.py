"""`foveate evaluate`: the accuracy of a bundle, measured with the pieces that serve it."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foveate_runtime.backends.registry import BACKENDS, create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.folder import NoModelError, find_version
from foveate_runtime.console import DONE, answer, positive
from foveate_runtime.evaluation.accuracy import measure_accuracy
from foveate_runtime.evaluation.labelled import open_labelled

PROG = "foveate evaluate"

DESCRIPTION = """\
Classifies labelled pictures with a bundle, through the image pipeline and the
backend that serve it, and prints how often the right class comes first and
among the first five."""


def main(arguments: Sequence[str]) -> int:
    """Measure a bundle and return the exit code."""
    options = _parser().parse_args(arguments)
    return answer(lambda: _run(options), PROG, usage=(NoModelError,))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description=DESCRIPTION)
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument("--version", type=positive, metavar="N", help="default: the newest")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|mnist",
        help="a folder with one folder a class, called as the label, by its WordNet id or by "
        "its index; or MNIST's test set",
    )
    parser.add_argument("--variant", help="default: the bundle's first")
    parser.add_argument("--backend", choices=list(BACKENDS), help="default: the first installed")
    parser.add_argument(
        "--device", default="cpu", help="what the backend runs on, such as cuda:0; default: cpu"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="take this many pictures")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _run(options: argparse.Namespace) -> int:
    bundle = Bundle.open(find_version(options.repository, options.model, options.version))
    labelled = open_labelled(options.data, bundle.labels, options.limit)
    columns = (
        TextColumn("classifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with (
        create_runner(
            bundle, variant=options.variant, backend=options.backend, device=options.device
        ) as runner,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("", total=len(labelled))
        scored = measure_accuracy(
            runner, bundle.manifest.input, labelled, lambda n: progress.advance(task, n)
        )
        variant, backend, device = runner.variant, runner.backend, runner.device
    result = {
        "model": bundle.manifest.name,
        "version": bundle.manifest.version,
        "variant": variant,
        "backend": backend,
        "device": device,
        **scored.model_dump(),
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"{options.model} version {result['version']}, {variant} on {backend}, {device}: "
            f"top-1 {scored.top1:.2%}, top-5 {scored.top5:.2%} "
            f"of {scored.images} pictures ({scored.data})"
        )
    return DONE
