"""`foveate evaluate`: the accuracy of a bundle, measured with the pieces that serve it."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from foveate_runtime.backends.registry import BACKENDS, create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.folder import NoModelError, find_version
from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.console import DONE, UsageError, answer, positive, warn
from foveate_runtime.evaluation.accuracy import FIRST, measure_accuracy
from foveate_runtime.evaluation.labelled import Labelled, open_labelled
from foveate_runtime.evaluation.multilabel import (
    TABLE_SUFFIX,
    LabelTable,
    measure_labels,
    open_table,
)
from foveate_runtime.evaluation.trusted import TrustTally
from foveate_runtime.trust.reliability import expected_calibration_error

PROG = "foveate evaluate"

_USUAL = 0.5
"""The score from which on a picture has a label."""

DESCRIPTION = """\
Classifies labelled pictures with a bundle, through the image pipeline and the
backend that serve it, and prints how often the right class comes first and
among the first five; or, of pictures with several labels each, the mean average
precision and the F1 score of every label."""
EPILOG = "example: foveate evaluate --repository models --model resnet18 --data photos"


def main(arguments: Sequence[str]) -> int:
    """Measure a bundle and return the exit code."""
    options = _parser().parse_args(arguments)
    return answer(lambda: _run(options), PROG, usage=(NoModelError,))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "--repository", type=Path, required=True, metavar="DIR", help="the folder of models"
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="the model to measure")
    parser.add_argument("--version", type=positive, metavar="N", help="default: the newest")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|FILE.csv|mnist",
        help="a folder with one folder a class, called as the label, by its WordNet id or by "
        "its index; a table of pictures and the labels of each; or MNIST's test set",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="SCORE",
        help="with a table: the score from which on a picture has a label; default: 0.5",
    )
    parser.add_argument(
        "--corrupt",
        choices=["fail", "skip"],
        default="skip",
        help="pictures that cannot be decoded: end this, or leave them out and count them; "
        "default: skip",
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
    labelled: Labelled
    passed: list[str] = []
    threshold = _threshold(options, bundle.manifest.scores)
    if threshold is None:
        labelled = open_labelled(options.data, bundle.labels, options.limit, passed)
    else:
        labelled = open_table(Path(options.data), bundle.labels, options.limit)
    if passed:
        warn(PROG, f"passed over, as they are none of the classes: {', '.join(passed)}")
    corrupt: list[str] | None = [] if options.corrupt == "skip" else None
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
        advance = partial(progress.advance, task)
        scored: dict[str, Any]
        if isinstance(labelled, LabelTable) and threshold is not None:
            scored = asdict(
                measure_labels(
                    runner,
                    bundle.manifest,
                    labelled,
                    bundle.labels,
                    threshold=threshold,
                    advance=advance,
                    corrupt=corrupt,
                )
            )
        else:
            tally = TrustTally(bundle.manifest, runner.variant)
            accuracy = measure_accuracy(
                runner,
                bundle.manifest.input,
                labelled,
                advance,
                corrupt=corrupt,
                observe=tally.add if bundle.manifest.scores == "softmax" else None,
            )
            scored = accuracy.model_dump()
            if bundle.manifest.scores == "softmax":
                scored |= _trust_scores(tally)
        variant, backend, device = runner.variant, runner.backend, runner.device
    result = {
        "model": bundle.manifest.name,
        "version": bundle.manifest.version,
        "variant": variant,
        "backend": backend,
        "device": device,
        **scored,
    }
    if corrupt:
        noun = "picture" if len(corrupt) == 1 else "pictures"
        warn(PROG, f"{len(corrupt)} corrupt {noun} left out, the first {corrupt[0]}")
        result["corrupt"] = len(corrupt)
    if options.json:
        print(json.dumps(result))
    else:
        what = f"{options.model} version {result['version']}, {variant} on {backend}, {device}"
        print(
            f"{what}: {_summary(scored, len(bundle.labels))} of {scored['images']} pictures "
            f"({scored['data']})"
        )
        for line in _trust_lines(scored):
            print(line)
        if "labels" in scored:
            Console().print(_table(scored["labels"]))
    return DONE


def _trust_scores(tally: TrustTally) -> dict[str, Any]:
    """Return the calibration errors, before and after, and what the prediction sets did."""
    errors = {name: expected_calibration_error(bins) for name, bins in tally.bins.items()}
    if tally.seen_before:
        warn(PROG, "these are the pictures of the calibration: ece_calibrated and sets flatter it")
    return {
        "ece": errors["before"],
        "ece_calibrated": errors.get("after"),
        "sets": [asdict(each) for each in tally.sets],
    }


def _trust_lines(scored: dict[str, Any]) -> list[str]:
    """Say in words what is known of the scores' honesty and of the sets."""
    if "ece" not in scored:
        return []
    after = scored["ece_calibrated"]
    then = "" if after is None else f", {after:.2%} after"
    lines = [f"expected calibration error {scored['ece']:.2%} before calibration{then}"]
    return lines + [
        f"sets of {each['set_method']} for a coverage of {each['coverage']:g}: "
        f"{each['covered']:.2%} hold the right class, {each['mean_size']:.2f} classes on average"
        for each in scored["sets"]
    ]


def _threshold(options: argparse.Namespace, scores: Scores) -> float | None:
    """Return the score from which on a picture of a table has a label; None where there is none."""
    given: float | None = options.threshold
    if not options.data.lower().endswith(TABLE_SUFFIX):
        if given is not None:
            raise UsageError("--threshold goes with a table of pictures and labels, FILE.csv")
        return None
    if scores == "none":
        if given is None:
            raise UsageError("the model's scores are its logits: --threshold says which suffices")
        return given
    if given is not None and not 0 <= given <= 1:
        raise UsageError(f"--threshold {given:g} is not between 0 and 1")
    return _USUAL if given is None else given


def _summary(scored: dict[str, Any], classes: int) -> str:
    if "labels" not in scored:
        top5 = f", top-5 {scored['top5']:.2%}" if classes > FIRST else ""
        return f"top-1 {scored['top1']:.2%}{top5}"
    return (
        f"mean average precision {scored['mean_average_precision']:.2%}, "
        f"F1 {scored['f1']:.2%} from a score of {scored['threshold']:g} on,"
    )


def _table(labels: Sequence[dict[str, Any]]) -> Table:
    table = Table("label", box=None)
    for heading in ("pictures", "average precision", "precision", "recall", "F1"):
        table.add_column(heading, justify="right")
    for each in labels:
        average = each["average_precision"]
        shares = [f"{each[name]:.1%}" for name in ("precision", "recall", "f1")]
        found = "" if average is None else f"{average:.1%}"
        table.add_row(Text(each["label"]), str(each["images"]), found, *shares)
    return table
