"""`foveate batch`: classifies any number of pictures into a table."""

import argparse
import json
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from foveate_client._client import Client
from foveate_client._exceptions import CallError, FoveateError, os_reason
from foveate_client.batch import arrow, journal, ray_data, sources, tables
from foveate_client.batch.classes import Classes, read_names
from foveate_client.batch.evaluation import TOP, Evaluation, direction
from foveate_client.batch.rows import LAST, Plan
from foveate_client.batch.run import (
    CLASSIFIED,
    DONE_BEFORE,
    FAILED,
    TWICE,
    Finished,
    Outputs,
    classify_all,
    finish,
)
from foveate_client.batch.stream import Answers, classify_tasks
from foveate_client.commands._numbers import positive, seconds_or_none
from foveate_client.commands._options import (
    SourceOptions,
    TrustOptions,
    argument,
    option,
    parse,
    parser_of,
)
from foveate_client.commands._shared import (
    UNBROKEN,
    client_maker,
    complain,
    describe,
    made_folder,
    open_client,
    require_coverage,
    trust_request,
    without_maps,
)

IN_FLIGHT = 32
PATIENCE = 60.0

PROGRESS_SECONDS = 10.0

_CONFUSIONS = 5

_KEPT = "what was done is kept; the same command goes on from there"


class NoPicturesError(FoveateError):
    """The sources hold no picture."""


@dataclass(frozen=True, kw_only=True)
class Options(TrustOptions, SourceOptions):
    """The options of `foveate batch`; `patience` is in seconds."""

    sources: tuple[str, ...] = argument(
        "a folder, read with all below it; a picture; a list of paths (.txt, or - for "
        "standard input); a webdataset shard (.tar); a table with the files' bytes (.parquet)",
        metavar="SOURCE",
    )
    out: Path = option("the table to write: .parquet, .csv or .jsonl", metavar="FILE")
    errors: Path | None = option(
        "the pictures without a result (default: OUT.errors.jsonl)", metavar="FILE"
    )
    report: Path | None = option(
        "a page with every picture, its maps and filters, the worst mistakes first "
        "(default: OUT.report.html, accuracy alone, where the right classes are known)",
        metavar="FILE",
    )
    overwrite: bool = option("start anew and replace OUT")
    retry_errors: bool = option("try the failures of a finished table again")
    hidden: bool = option(
        "read hidden files of folders and shards as well: those that begin with a dot, and __MACOSX"
    )
    model: str = option("needed where there are several", metavar="NAME", default="")
    version: str = option("the model's version", metavar="V", default="")
    top_k: int | None = option(
        "how many classes to write (default: 5, or all that reach --threshold)", metavar="K"
    )
    threshold: float | None = option(
        "write only classes whose score is at least this", metavar="SCORE"
    )
    embeddings: tuple[str, ...] = option(
        "write the mean over this layer's cells, one value a channel; "
        f"{LAST!r} is the last layer; may be repeated",
        metavar="LAYER",
    )
    feature_maps: tuple[str, ...] = option(
        "write this layer's feature map; may be repeated", metavar="LAYER"
    )
    probabilities: bool = option(
        "write the score of every class, one array a picture, as Cleanlab takes them"
    )
    cam: Path | None = option(
        "write overlays of the best class's activation map here", metavar="DIR"
    )
    fiftyone: Path | None = option(
        "write what FiftyOne imports: the pictures, their classes and the predictions",
        metavar="DIR",
    )
    cam_method: str = option("how to explain", metavar="NAME", default="")
    labels: Path | None = option(
        "the class of each folder's name, as CSV: folder,class (an id or a label)", metavar="FILE"
    )
    image_column: str | None = option("the pictures' column of .parquet sources", metavar="NAME")
    label_column: str | None = option(
        "the classes' column of .parquet sources (default: label)", metavar="NAME"
    )
    ordered: bool = option("read folders, and write the table, by name")
    in_flight: int = option(
        "pictures held at once, by each worker of Ray (default: %(default)s)",
        metavar="N",
        type=positive,
        default=IN_FLIGHT,
    )
    patience: float = option(
        "how long to try again when the server is away or full (default: %(default)g)",
        metavar="SECONDS",
        type=seconds_or_none,
        default=PATIENCE,
    )
    engine: Literal["here", "ray"] = option(
        "what does the work: this process, or workers of Ray Data, on several machines; "
        "each has the client that --repository or --address makes (default: %(default)s)",
        default="here",
    )
    ray_address: str | None = option(
        "the Ray cluster (default: RAY_ADDRESS, a cluster that runs here, or a new one here)",
        metavar="HOST:PORT",
    )
    ray_workers: int | None = option(
        "how many workers Ray starts (default: one for each of its nodes)",
        metavar="N",
        type=positive,
    )
    json: bool = option("print the summary as JSON")


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """Figures of a run: how many pictures had each outcome; `passed` were skipped.

    `warned` counts the answers of this run with a warning.
    """

    finished: Finished
    outcomes: Counter[str]
    seconds: float
    passed: sources.Passed
    warned: sources.Passed

    @property
    def rate(self) -> float:
        """Pictures a second of this run."""
        return self.outcomes[CLASSIFIED] / self.seconds if self.seconds else 0.0


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand and return its exit code."""
    parser = parser_of(
        Options,
        prog="foveate batch",
        description="Classify any number of pictures into a table. A run that was cut off, even "
        "by kill -9, goes on where it was when the same command is given again.",
        epilog="example: foveate batch photos --repository models --out photos.parquet",
    )
    options = parse(parser, Options, arguments)
    _require_sense(parser, options)
    outputs = _outputs(options)
    try:
        if outputs.results.suffix == ".parquet":
            arrow.pyarrow()
        if options.engine == "ray":
            ray_data.ray()
        _require_free(outputs, overwrite=options.overwrite, retry_errors=options.retry_errors)
        resumed = outputs.journal.exists()
        with open_client(options) as client, made_folder(outputs.results.parent):
            summary, plan = _run(client, options, outputs, parser)
        _put_away(outputs, failures=bool(summary.finished.errors))
    except KeyboardInterrupt:
        complain(parser, _KEPT)
        raise
    except NoPicturesError as error:
        if not resumed:
            journal.remove(outputs.journal)
        complain(parser, str(error))
        return 1
    except CallError as error:
        kept = f"; {_KEPT}" if outputs.journal.exists() else ""
        complain(parser, f"{describe(error)}{kept}")
        return 1
    except FoveateError as error:
        complain(parser, describe(error))
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        complain(parser, os_reason(error))
        return 1
    except sqlite3.Error as error:
        complain(parser, f"{outputs.journal}: {journal.reason_of(error)}")
        return 1
    _show(summary, plan, outputs, as_json=options.json)
    return 1 if summary.finished.errors else 0


def _require_sense(parser: argparse.ArgumentParser, options: Options) -> None:
    if options.out.suffix not in tables.SUFFIXES:
        parser.error(f"--out must end in {', '.join(tables.SUFFIXES)}, not {options.out.name}")
    arrays = options.embeddings or options.feature_maps or options.probabilities
    if options.out.suffix == ".csv" and arrays:
        parser.error("a CSV file holds no arrays; --out takes .parquet or .jsonl for them")
    if options.cam_method and options.cam is None and options.report is None:
        parser.error("--cam-method needs --cam or --report")
    for flag, path in (("--report", options.report), ("--fiftyone", options.fiftyone)):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{flag} {path}: there is no folder {path.parent}")
    require_coverage(parser, options)
    for flag, given in (
        ("--ray-address", options.ray_address),
        ("--ray-workers", options.ray_workers),
    ):
        if given is not None and options.engine != "ray":
            parser.error(f"{flag} needs --engine ray")
    if "://" in (options.ray_address or ""):
        parser.error(f"--ray-address takes HOST:PORT, not {options.ray_address}")
    if options.sources.count(sources.STDIN) > 1:
        parser.error("standard input can be read only once")
    if options.out.is_dir():
        parser.error(f"--out {options.out} is a folder")
    if options.cam is not None:
        _require_folder(parser, options.cam, options.sources)


def _require_folder(parser: argparse.ArgumentParser, cam: Path, read: Sequence[str]) -> None:
    """Refuse a place for overlays that is a file, or in a folder whose pictures are read."""
    if cam.exists() and not cam.is_dir():
        parser.error(f"--cam {cam} is no folder")
    for source in map(Path, read):
        if source.is_dir() and cam.resolve().is_relative_to(source.resolve()):
            parser.error(f"--cam {cam} lies in {source}, whose pictures are read")


def _outputs(options: Options) -> Outputs:
    out = options.out
    # Tables of one name in two formats have reports and errors of their own.
    name = out.stem if out.suffix == ".csv" else out.name
    return Outputs(
        results=out,
        errors=options.errors or out.with_name(f"{name}.errors.jsonl"),
        report=options.report or out.with_name(f"{name}.report.html"),
        fiftyone=options.fiftyone,
    )


def _require_free(outputs: Outputs, *, overwrite: bool, retry_errors: bool) -> None:
    if overwrite:
        journal.remove(outputs.journal)
        journal.remove(outputs.kept)
        return
    if outputs.journal.exists():
        return
    if retry_errors:
        if not outputs.kept.exists():
            raise FoveateError(f"{outputs.results} has no failures to try again")
        outputs.kept.rename(outputs.journal)
    elif outputs.results.exists():
        again = "--retry-errors tries its failures again, " if outputs.kept.exists() else ""
        told = f"exists already; {again}--overwrite replaces it"
        raise FileExistsError(0, told, str(outputs.results))


def _put_away(outputs: Outputs, *, failures: bool) -> None:
    """Keep the journal of a finished run for as long as there are failures to try again."""
    journal.remove(outputs.kept)
    if failures:
        outputs.journal.rename(outputs.kept)
    else:
        journal.remove(outputs.journal)


def _run(
    client: Client,
    options: Options,
    outputs: Outputs,
    parser: argparse.ArgumentParser,
) -> tuple[_Summary, Plan]:
    model = client.model(options.model, options.version)
    explains = options.cam is not None or options.report is not None
    if explains and (told := without_maps(model)):
        complain(parser, told)
        explains = False
    count = len(model.labels)
    usual = min(TOP, count) if options.threshold is None else count
    plan = Plan(
        model=model,
        top_k=usual if options.top_k is None else options.top_k,
        threshold=options.threshold,
        embeddings=tuple(dict.fromkeys(options.embeddings)),
        feature_maps=tuple(dict.fromkeys(options.feature_maps)),
        cam_folder=options.cam if explains else None,
        cam_method=options.cam_method if explains else "",
        trust=trust_request(options),
        probabilities=options.probabilities,
        tiles=options.report is not None,
        tile_maps=explains and options.report is not None,
    )
    names = None
    if options.labels is not None:
        names = read_names(options.labels, model.labels, model.wordnet_ids)
    classes = Classes(model.labels, names, model.wordnet_ids)
    passed, warned = sources.Passed(), sources.Passed()
    source = sources.Joined(
        [
            sources.open_source(
                text,
                ordered=options.ordered,
                hidden=options.hidden,
                passed=passed,
                image_column=options.image_column,
                label_column=options.label_column,
            )
            for text in options.sources
        ]
    )
    console = Console(stderr=True, highlight=False)
    settings = plan.settings | {
        "sources": [sources.identity(text) for text in options.sources],
        "--image-column": options.image_column,
        "--label-column": options.label_column,
    }
    provenance = {
        "foveate": version("foveate-client"),
        **settings,
        "--labels": None if options.labels is None else str(options.labels.absolute()),
        "--hidden": options.hidden,
        "backend": model.backend,
        "device": model.device,
        "scores": model.scores,
        "preprocessing": asdict(model.input),
    }
    with (
        journal.Journal(outputs.journal, settings, retry_errors=options.retry_errors) as known,
        _progress(console) as progress,
    ):
        shown = progress.add_task("read", total=None, fresh=0, started=time.monotonic())
        outcomes: Counter[str] = Counter()
        lines = ProgressLines(parser.prog)

        def advance(outcome: str) -> None:
            outcomes[outcome] += 1
            if console.is_terminal:
                fresh = outcomes[CLASSIFIED] + outcomes[FAILED]
                progress.update(shown, advance=1, fresh=fresh)
            else:
                lines.print_when_due(outcomes)

        if console.is_terminal:
            _count_meanwhile(source, progress, shown)
        with ExitStack() as stack:
            answers = _answers(client, options, plan, stack)
            started = time.monotonic()
            classify_all(
                client,
                source,
                known,
                plan,
                classes,
                answers=answers,
                patience=options.patience,
                advance=advance,
                warned=warned,
            )
            seconds = time.monotonic() - started
        if not len(known):
            over = f"; passed over: {passed}" if passed.counts else ""
            raise NoPicturesError(f"there is no picture in {' '.join(options.sources)}{over}")
        finished = finish(known, outputs, plan, classes, provenance)
    summary = _Summary(
        finished=finished,
        outcomes=outcomes,
        seconds=seconds,
        passed=passed,
        warned=warned,
    )
    return summary, plan


def _answers(client: Client, options: Options, plan: Plan, stack: ExitStack) -> Answers:
    """Return the function that classifies: by the client, or by workers of Ray with one each."""
    if options.engine == "here":
        return partial(
            classify_tasks,
            client,
            options=plan.options,
            in_flight=options.in_flight,
            patience=options.patience,
        )
    job = ray_data.Job(
        connect=client_maker(options),
        folder=Path.cwd(),
        identity=ray_data.identity(plan.model),
        options=plan.options,
        in_flight=options.in_flight,
        patience=options.patience,
    )
    workers = ray_data.ray_answers(job, address=options.ray_address, workers=options.ray_workers)
    return stack.enter_context(workers)


class ProgressLines:
    """Prints the progress of a run without a terminal: a line every PROGRESS_SECONDS."""

    def __init__(self, prog: str) -> None:
        self._prog = prog
        self._started = self._latest = time.monotonic()

    def print_when_due(self, outcomes: Counter[str]) -> None:
        """Print a line if the last one is PROGRESS_SECONDS old."""
        now = time.monotonic()
        if now - self._latest < PROGRESS_SECONDS:
            return
        self._latest = now
        counts = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())
        rate = (outcomes[CLASSIFIED] + outcomes[FAILED]) / (now - self._started)
        print(f"{self._prog}: {counts}, {rate:.1f} a second", file=sys.stderr, flush=True)


class _Rate(ProgressColumn):
    """Pictures a second since the start, without those that were done before."""

    def render(self, task: Task) -> Text:
        seconds = time.monotonic() - task.fields["started"]
        return Text(f"{task.fields['fresh'] / seconds:.1f} images/s" if seconds > 0 else "")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _count_meanwhile(source: sources.Source, progress: Progress, task: Any) -> None:
    """Count the pictures on another thread, while the first are classified."""

    def count() -> None:
        # A source that cannot be counted cannot be read either: the reading reports it.
        with suppress(FoveateError):
            progress.update(task, total=source.count())

    threading.Thread(target=count, name="foveate-count", daemon=True).start()


def _show(summary: _Summary, plan: Plan, outputs: Outputs, *, as_json: bool) -> None:
    record = _record(summary, plan, outputs)
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
        return
    finished, outcomes = summary.finished, summary.outcomes
    facts = {
        "model": f"{plan.model.name}, version {plan.model.version}",
        "read": f"{outcomes.total():,} images",
        "classified": f"{outcomes[CLASSIFIED]:,} images in {summary.seconds:.1f} s, "
        f"{summary.rate:.1f} a second",
    }
    facts |= {
        name: f"{outcomes[name]:,} images"
        for name in (FAILED, DONE_BEFORE, TWICE)
        if outcomes[name]
    }
    if summary.passed.counts:
        facts["passed over"] = str(summary.passed)
    if summary.warned.counts:
        facts["warnings"] = str(summary.warned)
    facts["results"] = f"{finished.results:,} in {outputs.results}"
    if finished.errors:
        facts["errors"] = (
            f"{finished.errors:,} in {outputs.errors}; --retry-errors tries them again"
        )
    if finished.evaluation is not None:
        facts |= _evaluation_facts(finished.evaluation, plan.model.labels)
    if finished.report:
        facts["report"] = " and ".join(map(str, finished.report))
    if outputs.fiftyone is not None:
        rest = finished.not_in_fiftyone
        without = f"; {rest:,} images without a file of their own are left out" if rest else ""
        facts["fiftyone"] = f"{outputs.fiftyone}{without}"
    if finished.unmatched:
        facts["labels"] = (
            f"{finished.unmatched:,} images lie under a name that is no class, "
            f"such as {finished.first_unmatched}; --labels says which it means"
        )
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, "dim"), Text(value, overflow="fold"))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = UNBROKEN
    console.print(table)


def _evaluation_facts(evaluation: Evaluation, labels: Sequence[str]) -> dict[str, str]:
    top5 = f", top 5 {evaluation.top5:.1%}" if len(labels) > TOP else ""
    facts = {
        "accuracy": f"top 1 {evaluation.top1:.1%}{top5} of {evaluation.images:,} labelled images",
    }
    if evaluation.ece is not None:
        after = evaluation.ece_calibrated
        then = "" if after is None else f", {after:.1%} after calibration"
        facts["calibration"] = f"error {evaluation.ece:.1%}{then}: {direction(evaluation)}"
    if evaluation.sets is not None:
        sets = evaluation.sets
        facts["sets"] = (
            f"{sets.covered:.1%} hold the right class, for a coverage of {sets.coverage:g}; "
            f"{sets.mean_size:.2f} classes on average, {sets.empty:.1%} empty; the model abstained "
            f"from {sets.abstained:.1%}"
        )
    if evaluation.confusions:
        facts["confused"] = "\n".join(
            f"{labels[x.target]} taken for {labels[x.predicted]}: {x.images:,}"
            for x in evaluation.confusions[:_CONFUSIONS]
        )
    return facts


def _record(summary: _Summary, plan: Plan, outputs: Outputs) -> dict[str, Any]:
    finished = summary.finished
    evaluation = finished.evaluation
    labels = plan.model.labels
    return {
        "model": plan.model.name,
        "version": plan.model.version,
        "results": finished.results,
        "errors": finished.errors,
        "read": summary.outcomes.total(),
        "classified": summary.outcomes[CLASSIFIED],
        "failed": summary.outcomes[FAILED],
        "done_before": summary.outcomes[DONE_BEFORE],
        "named_twice": summary.outcomes[TWICE],
        "names_without_class": finished.unmatched,
        "passed_over": dict(summary.passed.counts),
        "warnings": dict(summary.warned.counts),
        "seconds": summary.seconds,
        "images_per_second": summary.rate,
        "files": {
            "results": str(outputs.results),
            "errors": str(outputs.errors) if finished.errors else None,
            "report": str(outputs.report) if finished.report else None,
            "provenance": None if outputs.provenance is None else str(outputs.provenance),
            "fiftyone": None if outputs.fiftyone is None else str(outputs.fiftyone),
        },
        "evaluation": None
        if evaluation is None
        else {
            "images": evaluation.images,
            "top1": evaluation.top1,
            "top5": evaluation.top5,
            "ece": evaluation.ece,
            "ece_calibrated": evaluation.ece_calibrated,
            "sets": None if evaluation.sets is None else asdict(evaluation.sets),
            "confidence": evaluation.confidence,
            "classes": [
                {"label": labels[x.target], "images": x.images, "right": x.right}
                for x in evaluation.classes
            ],
            "confusions": [
                {
                    "label": labels[x.target],
                    "taken_for": labels[x.predicted],
                    "images": x.images,
                }
                for x in evaluation.confusions
            ],
        },
    }
