"""`foveate evaluate`: the accuracy of a bundle, measured with the pieces that serve it."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.registry import BACKENDS, create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.folder import NoModelError, find_version
from foveate_runtime.bundle.manifest import Faithfulness, Mean, Randomisation, Scores
from foveate_runtime.bundle.publishing import publish_beside, require_place
from foveate_runtime.console import DONE, UsageError, answer, positive, transfer, warn
from foveate_runtime.evaluation.accuracy import FIRST, measure_accuracy
from foveate_runtime.evaluation.faithfulness import measure_faithfulness
from foveate_runtime.evaluation.labelled import Labelled, open_labelled
from foveate_runtime.evaluation.multilabel import (
    TABLE_SUFFIX,
    LabelTable,
    measure_labels,
    open_table,
)
from foveate_runtime.evaluation.randomisation import measure_randomisation
from foveate_runtime.evaluation.report import ReportError, fill_report, open_report
from foveate_runtime.evaluation.trusted import TrustTally
from foveate_runtime.options import option, parse
from foveate_runtime.remote.location import Location, is_url
from foveate_runtime.remote.mirror import Mirror, cache_folder
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


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `foveate evaluate`."""

    repository: str = option(
        "the folder of models, or its URL: s3://, gs://, az://, hf://, oci:// or file://",
        metavar="DIR|URL",
    )
    model: str = option("the model to measure", metavar="NAME")
    version: int | None = option("default: the newest", type=positive, metavar="N")
    data: str = option(
        "a folder with one folder a class, called as the label, by its WordNet id or by "
        "its index; a table of pictures and the labels of each; or MNIST's test set",
        metavar="DIR|FILE.csv|mnist",
    )
    threshold: float | None = option(
        "with a table: the score from which on a picture has a label; default: 0.5", metavar="SCORE"
    )
    corrupt: Literal["fail", "skip"] = option(
        "pictures that cannot be decoded: end this, or leave them out and count them; "
        "default: skip",
        default="skip",
    )
    variant: str | None = option("default: the bundle's first")
    backend: str | None = option("default: the first installed", choices=list(BACKENDS))
    device: str = option("what the backend runs on, such as cuda:0; default: cpu", default="cpu")
    limit: int | None = option("take this many pictures", type=positive, metavar="N")
    explanations: bool = option(
        "also measure what the maps are worth, beside noise, a Gaussian in the middle, and "
        "random weights, and write it into a new version of the bundle"
    )
    report: Path | None = option(
        "also write a page with every picture, its maps and filters, the worst mistakes first",
        metavar="FILE.html",
    )
    json: bool = option("print the result as JSON")


def main(arguments: Sequence[str]) -> int:
    """Measure a bundle and return the exit code."""
    options = parse(Options, arguments, prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    return answer(lambda: _run(options), PROG, usage=(NoModelError, ReportError))


def _run(options: Options) -> int:
    if options.explanations and is_url(options.repository):
        raise UsageError("--explanations writes a new version, which needs a folder, and no URL")
    bundle = Bundle.open(find_version(_folder(options), options.model, options.version))
    manifest = bundle.manifest
    if options.explanations:
        require_place(bundle)
        if options.data.lower().endswith(TABLE_SUFFIX):
            raise UsageError("--explanations takes pictures in one folder a class, and no table")
    if options.report is not None and not options.report.absolute().parent.is_dir():
        raise UsageError(f"--report {options.report}: there is no folder {options.report.parent}")
    labelled, threshold = _open(options, bundle)
    corrupt: list[str] | None = [] if options.corrupt == "skip" else None
    columns = (
        TextColumn("classifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with (
        nullcontext() if options.report is None else open_report(options.report, bundle) as report,
        create_runner(
            bundle, variant=options.variant, backend=options.backend, device=options.device
        ) as runner,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("", total=len(labelled))
        advance = partial(progress.advance, task)
        scored = _scores(runner, bundle, labelled, threshold, advance=advance, corrupt=corrupt)
        worth = None
        if options.explanations:
            progress.reset(task, total=len(labelled))
            skipped: list[str] | None = None if corrupt is None else []
            worth = measure_faithfulness(
                runner, manifest.input, labelled, manifest.scores, advance, corrupt=skipped
            )
            progress.reset(task, total=len(labelled))
            alike = measure_randomisation(bundle, runner, labelled, advance, corrupt=skipped)
            worth = worth.model_copy(update={"randomisation": alike})
        if report is not None:
            progress.reset(task, total=len(labelled))
            fill_report(
                report,
                runner,
                manifest,
                labelled,
                threshold=threshold,
                advance=advance,
                skip_corrupt=corrupt is not None,
            )
            written = report.write(_figures(scored))
    result = {
        "model": manifest.name,
        "version": manifest.version,
        "variant": runner.variant,
        "backend": runner.backend,
        "device": runner.device,
        **scored,
    }
    if corrupt:
        noun = "picture" if len(corrupt) == 1 else "pictures"
        warn(PROG, f"{len(corrupt)} corrupt {noun} left out, the first {corrupt[0]}")
        result["corrupt"] = len(corrupt)
    if worth is not None:
        path = publish_beside(bundle, manifest.model_copy(update={"faithfulness": worth}))
        result |= {"explanations": worth.model_dump(), "path": str(path)}
    if report is not None:
        result["report"] = [str(path) for path in written]
    if options.json:
        print(json.dumps(result))
    else:
        _print(result, bundle, worth)
    return DONE


def _folder(options: Options) -> Path:
    """Return the folder of models; of a URL that of its mirror, with the version wanted."""
    if not is_url(options.repository):
        return Path(options.repository)

    def choose(model: str, versions: Sequence[int]) -> Iterable[int]:
        if model != options.model:
            return ()
        return (options.version or max(versions),)

    location = Location.parse(options.repository)
    with transfer(Console(stderr=True)) as progress:
        mirror = Mirror(location, cache_folder(location), choose, progress)
        return mirror.open(partial(warn, PROG))


def _open(options: Options, bundle: Bundle) -> tuple[Labelled, float | None]:
    """Return the pictures, and of a table the score from which on a picture has a label."""
    threshold = _threshold(options, bundle.manifest.scores)
    if threshold is not None:
        return open_table(Path(options.data), bundle.labels, options.limit), threshold
    passed: list[str] = []
    labelled = open_labelled(options.data, bundle.labels, options.limit, passed)
    if passed:
        warn(PROG, f"passed over, as they are none of the classes: {', '.join(passed)}")
    return labelled, None


def _scores(
    runner: Runner,
    bundle: Bundle,
    labelled: Labelled,
    threshold: float | None,
    *,
    advance: Callable[[int], object],
    corrupt: list[str] | None,
) -> dict[str, Any]:
    manifest = bundle.manifest
    if isinstance(labelled, LabelTable) and threshold is not None:
        measured = measure_labels(
            runner,
            manifest,
            labelled,
            bundle.labels,
            threshold=threshold,
            advance=advance,
            corrupt=corrupt,
        )
        return asdict(measured)
    tally = TrustTally(manifest, runner.variant) if manifest.scores == "softmax" else None
    accuracy = measure_accuracy(
        runner,
        manifest.input,
        labelled,
        advance,
        corrupt=corrupt,
        observe=tally.add if tally else None,
    )
    return accuracy.model_dump() | (_trust_scores(tally) if tally else {})


def _print(result: dict[str, Any], bundle: Bundle, worth: Faithfulness | None) -> None:
    """Print the result as text."""
    what = f"{result['model']} version {result['version']}"
    engine = f"{result['variant']} on {result['backend']}, {result['device']}"
    print(
        f"{what}, {engine}: {_summary(result, len(bundle.labels))} of {result['images']} pictures "
        f"({result['data']})"
    )
    for line in _trust_lines(result):
        print(line)
    if "report" in result:
        print(f"report in {' and '.join(result['report'])}")
    if worth is not None:
        Console().print(_worth_table(worth))
        if worth.randomisation is None:
            print("no random weights were tried, as these are not in float32")
        else:
            Console().print(_randomisation_table(worth.randomisation))
        print(f"written into {result['path']}")
    if "labels" in result:
        Console().print(_table(result["labels"]))


def _figures(scored: dict[str, Any]) -> dict[str, str]:
    """Return the report's figures of independent labels; those of classes it computes."""
    if "labels" not in scored:
        return {}
    return {
        "mean average precision": f"{scored['mean_average_precision']:.2%}",
        "F1": f"{scored['f1']:.2%}",
        "from a score of": f"{scored['threshold']:g}",
    }


def _trust_scores(tally: TrustTally) -> dict[str, Any]:
    """Return the calibration errors, before and after, and the figures of the prediction sets."""
    errors = {name: expected_calibration_error(bins) for name, bins in tally.bins.items()}
    if tally.seen_before:
        warn(PROG, "these are the pictures of the calibration: ece_calibrated and sets flatter it")
    return {
        "ece": errors["before"],
        "ece_calibrated": errors.get("after"),
        "sets": [asdict(each) for each in tally.sets],
    }


def _trust_lines(scored: dict[str, Any]) -> list[str]:
    """Return the calibration of the scores, and the coverage of the sets, as lines of text."""
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


def _worth_table(worth: Faithfulness) -> Table:
    table = Table(box=None)
    table.add_column("map", no_wrap=True)
    for heading in ("insertion", "deletion", "average drop", "increase", "focus"):
        table.add_column(heading, justify="right")
    for name, found in worth.maps.items():
        means = (found.insertion, found.deletion, found.average_drop)
        table.add_row(
            name, *map(_mean_cell, means), f"{found.increase:.1%}", _mean_cell(found.focus)
        )
    return table


def _randomisation_table(found: Randomisation) -> Table:
    table = Table(box=None, title="like its own map, with random weights in the last layers")
    table.add_column("map", no_wrap=True)
    for number in found.layers:
        table.add_column(f"{number} of {found.of}", justify="right")
    for name, means in found.maps.items():
        table.add_row(name, *map(_mean_cell, means))
    return table


def _mean_cell(found: Mean | None) -> str:
    """Return a mean, so short that a table of them fits a terminal of 80 columns."""
    return "" if found is None else f"{found.mean:.2f} ± {found.error:.2f}"


def _threshold(options: Options, scores: Scores) -> float | None:
    """Return the score from which on a picture of a table has a label; None where there is none."""
    given = options.threshold
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
