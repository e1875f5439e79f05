"""`foveate bench`: which backend, which precision, which batch, measured."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from foveate_serve.backends.base import BackendError
from foveate_serve.backends.registry import BACKENDS
from foveate_serve.bench import machine
from foveate_serve.bench.document import Model, Report, Settings
from foveate_serve.bench.files import write_files
from foveate_serve.bench.measuring import Measured, Rounds, measure
from foveate_serve.bench.plan import ALL, Choice, ChoiceError, ModelPlan, Plan, PlanError, make_plan
from foveate_serve.bench.report import verdicts
from foveate_serve.bench.results import OUTPUT_KINDS, OutputKind, find_ties
from foveate_serve.bundle.bundle import BundleError
from foveate_serve.evaluation.labelled import LabelledError, NoPicturesError

PROG = "foveate bench"

DESCRIPTION = """\
Measures every backend that is installed, every variant of the models named and
every batch size, with and without class activation maps and feature maps, and
writes a report: results.json, README.md, report.html and charts."""

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

LARGEST_BATCH = 1024


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    with _terminated_as_interrupted():
        try:
            return _run(options)
        except (ChoiceError, NoPicturesError) as error:
            return _fail(error, WRONG_USAGE)
        except (PlanError, BackendError, BundleError, LabelledError, OSError) as error:
            return _fail(error, FAILED)


def _run(options: argparse.Namespace) -> int:
    here = machine.describe()
    plan = make_plan(_choice(options), here)
    _check_writable(options.out)
    rounds = Rounds(count=options.rounds, seconds=options.seconds)
    created, load_average = datetime.now(UTC), os.getloadavg()[0]
    measured = Measured()
    complete = _measure(plan, rounds, measured)
    measurements = measured.measurements()
    report = Report(
        created=created,
        complete=complete,
        load_average=load_average,
        machine=here,
        settings=Settings(
            batches=options.batch,
            outputs=options.outputs,
            rounds=rounds.count,
            seconds=rounds.seconds,
        ),
        models=tuple(map(_describe, plan.models)),
        measurements=measurements,
        accuracies=tuple(measured.accuracies),
        ties=find_ties(measurements),
        refusals=(*plan.refusals, *measured.refusals),
    )
    write_files(report, options.out)
    if options.json:
        print(report.model_dump_json(indent=2))
    else:
        print("\n".join([*verdicts(report), f"the report is {options.out / 'report.html'}"]))
    if not complete:
        print(f"{PROG}: stopped; what was measured is in {options.out}", file=sys.stderr)
        return INTERRUPTED
    if not measurements:
        return _fail(PlanError("nothing could be measured; the report says why"), FAILED)
    return DONE


def _measure(plan: Plan, rounds: Rounds, measured: Measured) -> bool:
    """Measure all models into `measured`; return whether that ended before Ctrl-C."""
    try:
        with _Watching() as watcher:
            for model in plan.models:
                measure(model, rounds, measured, watcher)
    except KeyboardInterrupt:
        return False
    return True


class _Watching:
    """Shows on stderr how far the measuring is, and how much time is left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def begin(self, text: str, total: float) -> None:
        self._task = self._progress.add_task(text, total=total)

    def advance(self, amount: float) -> None:
        if self._task is not None:
            self._progress.advance(self._task, amount)

    def __enter__(self) -> "_Watching":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _describe(plan: ModelPlan) -> Model:
    manifest = plan.bundle.manifest
    return Model(
        name=manifest.name,
        version=manifest.version,
        classifier=manifest.classifier,
        parameters=manifest.parameters,
        height=manifest.input.height,
        width=manifest.input.width,
        channels=manifest.input.channels,
        classes=manifest.classes,
        pictures=plan.pictures,
        file_bytes={entry.name: manifest.files[entry.file].size for entry in manifest.variants},
    )


def _choice(options: argparse.Namespace) -> Choice:
    return Choice(
        repository=options.repository,
        models=_distinct(options.model),
        backends=_distinct(options.backend),
        variants=_distinct(options.variant),
        batches=options.batch,
        threads=options.threads,
        devices=_distinct(options.device),
        outputs=options.outputs,
        data=dict(options.data),
    )


def _check_writable(folder: Path) -> None:
    """Raise PlanError where nothing can be written into `folder`; it is made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PlanError(f"--out {folder}: cannot be written ({error.strerror})") from error


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let a termination signal end the block as Ctrl-C does: what was measured is kept."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _fail(error: Exception, code: int) -> int:
    print(f"{PROG}: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=DESCRIPTION,
        epilog="Names may have commas or spaces between them.",
    )
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--model",
        type=_names,
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME",
        help="the models; of each the newest version is measured",
    )
    parser.add_argument(
        "--backend",
        type=_names,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help=f"of {', '.join(BACKENDS)}; {ALL}, the default, are those that can run here",
    )
    parser.add_argument(
        "--variant",
        type=_names,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="default: all of each model",
    )
    parser.add_argument(
        "--batch",
        type=_counts(LARGEST_BATCH),
        default=(1, 2, 4, 8, 16, 32),
        metavar="N,...",
        help="default: 1,2,4,8,16,32",
    )
    parser.add_argument(
        "--threads",
        type=_counts(os.cpu_count() or 1),
        default=(),
        metavar="N,...",
        help="the threads of one run on a processor; default: as many as there are cores",
    )
    parser.add_argument(
        "--device",
        type=_names,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="such as cpu or cuda:0; default: cpu and, where there is a GPU, cuda:0",
    )
    parser.add_argument(
        "--outputs",
        type=_kinds,
        default=OUTPUT_KINDS,
        metavar="KIND,...",
        help="logits: predictions alone; cam: and the maps of the five best classes; "
        "features: and the feature map of the last layer; default: all three",
    )
    parser.add_argument(
        "--data",
        type=_data,
        action="append",
        default=[],
        metavar="[MODEL=]DIR",
        help="labelled pictures, to measure the accuracy and to time on: a folder with one folder "
        "a class, called as the label, by its WordNet id or by its index; "
        "default: the pictures kept in the bundle, and no accuracy",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=5,
        metavar="N",
        help="turns of every case (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=0.5,
        metavar="S",
        help="the time of a turn, and at least one run (default: %(default)g)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where the report is written"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def _names(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r}: a name is missing between the commas")
    return found


def _distinct(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(lists)))


def _kinds(text: str) -> tuple[OutputKind, ...]:
    wanted = _names(text)
    for name in wanted:
        if name not in OUTPUT_KINDS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is none of the outputs {', '.join(OUTPUT_KINDS)}"
            )
    return tuple(kind for kind in OUTPUT_KINDS if kind in wanted)


def _counts(limit: int) -> Callable[[str], tuple[int, ...]]:
    """Return what reads a list of whole numbers of 1 to `limit`."""

    def read(text: str) -> tuple[int, ...]:
        found = []
        for part in text.split(","):
            number = int(part) if part.strip().isdecimal() else 0
            if not 1 <= number <= limit:
                raise argparse.ArgumentTypeError(
                    f"{part.strip()!r} in {text!r} is no whole number of 1 to {limit}"
                )
            found.append(number)
        return tuple(sorted(set(found)))

    return read


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time of 0 seconds or more")
    return number


def _data(text: str) -> tuple[str, Path]:
    model, separator, folder = text.partition("=")
    return (model, Path(folder)) if separator else ("", Path(text))
