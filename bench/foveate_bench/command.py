"""`foveate bench`: which backend, which precision, which batch, measured."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from foveate_bench import loadgen, machine
from foveate_bench.document import Report
from foveate_bench.files import PAGE_FILE, write_files
from foveate_bench.loadgen import LoadGenError, Scenario
from foveate_bench.measuring import Rounds
from foveate_bench.plan import (
    ALL,
    Choice,
    ChoiceError,
    Plan,
    PlanError,
    every_model,
    make_plan,
)
from foveate_bench.recommend import PROFILE_FILE, Objective
from foveate_bench.report import verdicts
from foveate_bench.results import OUTPUT_KINDS, OutputKind
from foveate_bench.run import Task, run
from foveate_runtime.backends.recommended import (
    RECOMMENDED_FILE,
    Recommended,
    write_recommended,
)
from foveate_runtime.backends.registry import BACKENDS
from foveate_runtime.console import DONE, FAILED, answer, positive, say
from foveate_runtime.cores import count_cores
from foveate_runtime.options import option, parse

PROG = "foveate bench"

DESCRIPTION = """\
Measures every backend that is installed, every variant of the models named and
every batch size, with and without class activation maps and feature maps, and
writes a report: results.json, README.md, report.html and charts. With --recommend
it finds out in a short run what foveate serve should run on this machine."""

INTERRUPTED = 130

LARGEST_BATCH = 1024

_BUSY = 0.3
"""The load a core from which on others are taken to be at work."""


def _names(text: str) -> tuple[str, ...]:
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r}: a name is missing between the commas")
    return found


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


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is below 0, or no number")
    return number


def _objective(text: str) -> Objective:
    try:
        return Objective.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _scenarios(text: str) -> tuple[Scenario, ...]:
    if text == ALL:
        return tuple(Scenario)
    known = {scenario.value: scenario for scenario in Scenario}
    for name in _names(text):
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}, {ALL}")
    return tuple(known[name] for name in _names(text))


def _data(text: str) -> tuple[str, Path]:
    model, separator, folder = text.partition("=")
    return (model, Path(folder)) if separator else ("", Path(text))


_SEVERAL: Mapping[str, Any] = {
    "type": _names,
    "nargs": "+",
    "action": "extend",
    "default": [],
    "metavar": "NAME",
}
"""An option that takes names with commas or spaces between them."""

_SHORT: Mapping[str, object] = {
    "batch": (1, 8),
    "outputs": ("logits",),
    "seconds": 0.1,
    "roofline": False,
}
"""The defaults of --recommend that differ: a few seconds of turns a model."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `foveate bench`.

    `seconds` and `loadgen_seconds` are in seconds, `loadgen_latency` is in milliseconds, and
    `max_drop` is in points of top-1.
    """

    repository: Path = option("the folder of models", metavar="DIR")
    model: tuple[tuple[str, ...], ...] = option(
        "the models; of each the newest version is measured; with --recommend the default "
        "are all of them",
        **_SEVERAL,
    )
    backend: tuple[tuple[str, ...], ...] = option(
        f"of {', '.join(BACKENDS)}; {ALL}, the default, are those that can run here",
        **_SEVERAL,
    )
    variant: tuple[tuple[str, ...], ...] = option(
        "default: all of each model",
        **_SEVERAL,
    )
    batch: tuple[int, ...] = option(
        "default: 1,2,4,8,16,32; with --recommend 1,8",
        type=_counts(LARGEST_BATCH),
        default=(1, 2, 4, 8, 16, 32),
        metavar="N,...",
    )
    threads: tuple[int, ...] = option(
        "the threads of one run on a processor; default: as many as there are cores",
        type=_counts(count_cores()),
        metavar="N,...",
    )
    device: tuple[tuple[str, ...], ...] = option(
        "such as cpu or cuda:0; default: cpu and, where there is a GPU, cuda:0; with "
        "--recommend cpu",
        **_SEVERAL,
    )
    outputs: tuple[OutputKind, ...] = option(
        "logits: predictions alone; cam: and the maps of the five best classes; "
        "features: and the feature map of the last layer; default: all three; with --recommend "
        "logits",
        type=_kinds,
        default=OUTPUT_KINDS,
        metavar="KIND,...",
    )
    data: tuple[tuple[str, Path], ...] = option(
        "labelled pictures, to measure the accuracy and to time on: a folder with one folder "
        "a class, called as the label, by its WordNet id or by its index; "
        "default: the pictures kept in the bundle, and no accuracy",
        type=_data,
        action="append",
        default=[],
        metavar="[MODEL=]DIR",
    )
    rounds: int = option(
        "turns of every case (default: %(default)s)",
        type=positive,
        default=5,
        metavar="N",
    )
    seconds: float = option(
        "the time of a turn, and at least one run (default: 0.5; with --recommend 0.1)",
        type=_not_negative,
        default=0.5,
        metavar="S",
    )
    roofline: bool = option(
        "measure the machine's peaks, and how far each case is from them (default: yes; with "
        "--recommend no)",
        action=argparse.BooleanOptionalAction,
        default=True,
    )
    profile: bool = option("time the operators of each engine, on its smallest batch")
    objective: Objective | None = option(
        "p99=MILLISECONDS, throughput or memory: recommend what serves it best, and write "
        f"{PROFILE_FILE} for foveate serve --profile",
        type=_objective,
        metavar="GOAL",
    )
    max_drop: float = option(
        "points of top-1 that a recommendation may lose against fp32 (default: %(default)g)",
        type=_not_negative,
        default=1.0,
        metavar="POINTS",
    )
    recommend: bool = option(
        "measure each model in a short run, for the most pictures a second unless "
        f"--objective says another goal, and write into the repository's {RECOMMENDED_FILE} which "
        "backend and variant foveate serve takes on this machine"
    )
    loadgen: tuple[Scenario, ...] = option(
        "have MLPerf's LoadGen ask what is recommended, or else the fastest of each model, "
        f"in the process and over gRPC: {', '.join(s.value for s in Scenario)}, or {ALL}",
        type=_scenarios,
        metavar="SCENARIO,...",
    )
    loadgen_seconds: float = option(
        "the least time of a scenario (default: %(default)g)",
        type=_not_negative,
        default=10.0,
        metavar="S",
    )
    loadgen_latency: float = option(
        "within which Server must answer 99 of 100 (default: %(default)g)",
        type=_not_negative,
        default=100.0,
        metavar="MS",
    )
    out: Path | None = option(
        "where the report is written; --recommend alone writes none", metavar="DIR"
    )
    json: bool = option("print the results as JSON")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options = _parse(arguments, {})
    if options.recommend:
        options = _parse(arguments, _SHORT)
    return answer(
        lambda: _run(options), PROG, usage=(ChoiceError,), failures=(PlanError, LoadGenError)
    )


def _run(options: Options) -> int:
    _check_usage(options)
    here = machine.describe()
    plan = make_plan(_choice(options), here)
    if options.loadgen:
        loadgen.require()
    if options.out is not None:
        _check_writable(options.out, "--out")
    if options.recommend:
        _check_writable(options.repository, "--repository")
    _warn_if_busy(here.cores)
    with _Watching() as watcher:
        report = run(plan, here, _task(options), watcher)
    if options.out is not None:
        write_files(report, options.out)
    _print(report, options)
    if not report.complete:
        where = "" if options.out is None else f"; what was measured is in {options.out}"
        nothing = "; nothing is recommended" if options.recommend else ""
        print(f"{PROG}: stopped{nothing}{where}", file=sys.stderr)
        return INTERRUPTED
    if options.recommend:
        return _keep(plan, report, options.repository)
    if not report.measurements:
        return say(PROG, PlanError("nothing could be measured; the report says why"), FAILED)
    return DONE


def _check_usage(options: Options) -> None:
    if options.recommend:
        if len(_distinct(options.device)) > 1:
            raise ChoiceError("--recommend is for one --device, that of foveate serve")
        if options.loadgen and options.out is None:
            raise ChoiceError("--loadgen needs --out, for its files")
    elif options.out is None:
        raise ChoiceError("--out must be given, or --recommend")
    elif not options.model:
        raise ChoiceError("--model must be given, or --recommend")


def _print(report: Report, options: Options) -> None:
    if options.json:
        print(report.model_dump_json(indent=2))
        return
    if not (options.recommend and options.out is None):
        print("\n".join(verdicts(report)))
    elif report.recommendation is not None and report.complete:
        for choice in report.recommendation.choices:
            print(f"recommended: {choice.why}")
    if options.out is not None:
        print(f"the report is {options.out / PAGE_FILE}")


def _keep(plan: Plan, report: Report, repository: Path) -> int:
    """Write what is recommended beside the models, say what is not, and return the exit code."""
    known = set(plan.refusals)
    for refusal in report.refusals:
        if refusal not in known:
            print(f"{PROG}: not measured: {refusal.what}: {refusal.reason}", file=sys.stderr)
    recommendation = report.recommendation
    choices = () if recommendation is None else recommendation.choices
    for refusal in () if recommendation is None else recommendation.refusals:
        remedy = f"; {refusal.remedy}" if refusal.remedy else ""
        print(f"{PROG}: {refusal.what}: {refusal.reason}{remedy}", file=sys.stderr)
    bundles = {model.bundle.manifest.name: model.bundle for model in plan.models}
    entries = {
        case.model: Recommended.here(
            bundles[case.model], variant=case.variant, backend=case.backend, device=case.device
        )
        for case in (choice.case for choice in choices)
    }
    path = write_recommended(repository, entries, bundles)
    if not entries:
        return say(PROG, PlanError("nothing can be recommended"), FAILED)
    print(f"{PROG}: foveate serve takes it from {path}", file=sys.stderr)
    return DONE


def _task(options: Options) -> Task:
    return Task(
        out=options.out,
        rounds=Rounds(count=options.rounds, seconds=options.seconds),
        roofline=options.roofline,
        profiled=options.profile,
        checked=options.recommend,
        objective=options.objective
        or (Objective(kind="throughput") if options.recommend else None),
        max_drop=options.max_drop,
        scenarios=options.loadgen,
        rules=loadgen.Rules(
            seconds=options.loadgen_seconds, target_latency_ms=options.loadgen_latency
        ),
    )


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


def _choice(options: Options) -> Choice:
    models, devices = _distinct(options.model), _distinct(options.device)
    if options.recommend:
        models = models or every_model(options.repository)
        devices = devices or ("cpu",)
    return Choice(
        repository=options.repository,
        models=models,
        backends=_distinct(options.backend),
        variants=_distinct(options.variant),
        batches=options.batch,
        threads=options.threads,
        devices=devices,
        outputs=options.outputs,
        without=_SLOW_TO_BUILD if options.recommend else (),
        data=dict(options.data),
    )


def _check_writable(folder: Path, option: str) -> None:
    """Raise PlanError where nothing can be written into an option's `folder`, made if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PlanError(f"{option} {folder}: cannot be written ({error.strerror})") from error


def _warn_if_busy(cores: int) -> None:
    load = os.getloadavg()[0]
    if load > _BUSY * cores:
        print(
            f"{PROG}: others are at work on this machine (load average {load:.1f}); "
            "differences may be theirs",
            file=sys.stderr,
        )


_SLOW_TO_BUILD = ("torch_compile",)
"""The backends that --recommend leaves out: they would compile for minutes at every start."""


def _parse(arguments: Sequence[str], defaults: Mapping[str, object]) -> Options:
    return parse(
        Options,
        arguments,
        prog=PROG,
        description=DESCRIPTION,
        epilog="Names may have commas or spaces between them. "
        "example: foveate bench --repository models --model resnet18 --batch 1,8 --out bench",
        defaults=defaults,
    )


def _distinct(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(lists)))
