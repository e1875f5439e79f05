"""A whole run: measures a plan and puts what came of it into one document."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, product
from pathlib import Path

from foveate_bench import loadgen, roofline
from foveate_bench.document import Model, Report, Settings
from foveate_bench.loadgen import LoadGenError, LoadGenResult, Rules, Scenario
from foveate_bench.machine import Machine
from foveate_bench.measuring import Measured, Rounds, Watcher, measure
from foveate_bench.plan import ModelPlan, Plan
from foveate_bench.recommend import REFERENCE, Objective, Recommendation, recommend
from foveate_bench.results import Accuracy, Case, Measurement, Refusal, find_ties
from foveate_bench.roofline import Roofline


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is done with a plan.

    `out` is the report's folder, which LoadGen writes its files into and needs. Without
    an `objective` nothing is recommended, and without `scenarios` LoadGen is not
    started. With `checked` only engines that give the bundle's golden answers are
    measured, and accuracies that are not measured are those of the manifest.
    """

    out: Path | None
    rounds: Rounds
    roofline: bool = True
    profiled: bool = False
    checked: bool = False
    objective: Objective | None = None
    max_drop: float = 1.0
    scenarios: tuple[Scenario, ...] = ()
    rules: Rules = field(default_factory=Rules)


def run(plan: Plan, machine: Machine, task: Task, watcher: Watcher) -> Report:
    """Measure a plan and return the report of it, of what there is where Ctrl-C stops it.

    Raises foveate_runtime.evaluation.labelled.LabelledError where a labelled
    picture cannot be decoded.
    """
    created, load_average = datetime.now(UTC), os.getloadavg()[0]
    measured = Measured()
    complete = True
    try:
        for model in plan.models:
            measure(
                model,
                task.rounds,
                measured,
                watcher,
                profiled=task.profiled,
                checked=task.checked,
            )
    except KeyboardInterrupt:
        complete = False
    measurements = measured.measurements()
    if task.checked:
        measured.accuracies += chain.from_iterable(map(_known_accuracies, plan.models))
    recommendation = _recommend(task, measurements, measured.accuracies)
    extras = _Extras()
    if complete:
        try:
            extras.add(plan, task, measurements, recommendation, watcher)
        except KeyboardInterrupt:
            complete = False
    return Report(
        created=created,
        complete=complete,
        load_average=load_average,
        machine=machine,
        settings=Settings(
            batches=tuple(sorted({batch for model in plan.models for batch in model.batches})),
            outputs=tuple(dict.fromkeys(kind for model in plan.models for kind in model.outputs)),
            rounds=task.rounds.count,
            seconds=task.rounds.seconds,
        ),
        models=tuple(map(_describe, plan.models)),
        measurements=measurements,
        accuracies=tuple(measured.accuracies),
        ties=find_ties(measurements),
        refusals=(*plan.refusals, *measured.refusals, *extras.refusals),
        roofline=extras.roofline,
        operators=tuple(measured.profiles),
        loadgen=tuple(extras.loadgen),
        recommendation=recommendation,
    )


class _Extras:
    """What is measured after the cases: the machine's peaks, and what LoadGen finds."""

    def __init__(self) -> None:
        self.roofline: Roofline | None = None
        self.loadgen: list[LoadGenResult] = []
        self.refusals: list[Refusal] = []

    def add(
        self,
        plan: Plan,
        task: Task,
        measurements: Sequence[Measurement],
        recommendation: Recommendation | None,
        watcher: Watcher,
    ) -> None:
        if task.roofline and measurements:
            watcher.begin("the machine's peaks", 1)
            bundles = {model.bundle.manifest.name: model.bundle for model in plan.models}
            self.roofline, refusals = roofline.run(measurements, bundles)
            self.refusals += refusals
            watcher.advance(1)
        if task.out is None:
            return
        for model in plan.models if task.scenarios else ():
            chosen = _chosen(model, measurements, recommendation)
            if chosen is not None:
                self._ask(model, chosen, task, task.out, watcher)

    def _ask(self, model: ModelPlan, case: Case, task: Task, out: Path, watcher: Watcher) -> None:
        watcher.begin(f"{case.model}: LoadGen", 2 * len(task.scenarios))
        configuration = case.configuration
        try:
            for result in loadgen.run(
                model.bundle,
                configuration,
                model.images,
                scenarios=task.scenarios,
                rules=task.rules.model_copy(update={"max_batch": case.batch}),
                out=out,
            ):
                self.loadgen.append(result)
                watcher.advance(1)
        except LoadGenError as error:
            what = f"LoadGen with {configuration}"
            self.refusals.append(Refusal(what=what, reason=str(error)))


def _known_accuracies(plan: ModelPlan) -> Iterator[Accuracy]:
    """Yield what the export measured, where fp32 and the variant had the same pictures.

    It holds for every engine that gives the golden answers.
    """
    manifest = plan.bundle.manifest
    scores = {entry.name: entry.accuracy for entry in manifest.variants}
    reference = scores.get(REFERENCE)
    if plan.labelled is not None or reference is None:
        return
    engines = dict.fromkeys((c.backend, c.device) for c in plan.configurations)
    for (backend, device), (variant, own) in product(engines, scores.items()):
        if own is not None and (own.data, own.images) == (reference.data, reference.images):
            yield Accuracy(
                model=manifest.name,
                version=manifest.version,
                variant=variant,
                backend=backend,
                device=device,
                **own.model_dump(),
            )


def _recommend(
    task: Task, measurements: Sequence[Measurement], accuracies: Sequence[Accuracy]
) -> Recommendation | None:
    if task.objective is None:
        return None
    return recommend(measurements, accuracies, task.objective, max_drop=task.max_drop)


def _chosen(
    model: ModelPlan, measurements: Iterable[Measurement], recommendation: Recommendation | None
) -> Case | None:
    """Return what is recommended for a model, or else what has the most pictures a second."""
    name = model.bundle.manifest.name
    if recommendation is not None:
        for choice in recommendation.choices:
            if choice.case.model == name:
                return choice.case
    own = [m for m in measurements if m.case.model == name and m.case.outputs == "logits"]
    best = max(own, key=lambda m: m.images_per_second, default=None)
    return None if best is None else best.case


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
