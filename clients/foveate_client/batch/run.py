"""A batch run: from the pictures through the journal to the finished files."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from foveate_client._client import Client
from foveate_client._results import Classification
from foveate_client.batch.classes import Classes
from foveate_client.batch.evaluation import Evaluation, Evaluator
from foveate_client.batch.journal import Failure, Journal, Row
from foveate_client.batch.report import render
from foveate_client.batch.rows import Plan
from foveate_client.batch.sources import Passed, Source, Unreadable
from foveate_client.batch.stream import Task, classify_tasks
from foveate_client.batch.tables import Columns, write_errors, write_results, write_text

CLASSIFIED, FAILED, DONE_BEFORE, TWICE = "classified", "failed", "done before", "named twice"


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a run writes: the results, the errors, and the evaluation's report."""

    results: Path
    errors: Path
    report: Path

    @property
    def provenance(self) -> Path | None:
        """Where a table that holds no metadata has its provenance beside it."""
        if self.results.suffix == ".parquet":
            return None
        return self.results.with_name(self.results.name + ".json")

    @property
    def journal(self) -> Path:
        """The journal, beside the results."""
        return self.results.with_name(self.results.name + ".journal")

    @property
    def kept(self) -> Path:
        """The journal of a finished run with failures, which may be tried again."""
        return self.journal.with_name(self.journal.name + ".done")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What the finished files hold; `evaluation` is None where no right class is known.

    `unmatched` are the results whose folder or record names no class, and
    `first_unmatched` is the first such name.
    """

    results: int
    errors: int
    evaluation: Evaluation | None
    unmatched: int
    first_unmatched: str | None


def classify_all(
    client: Client,
    source: Source,
    journal: Journal,
    plan: Plan,
    *,
    in_flight: int,
    patience: float,
    advance: Callable[[str], object],
    warned: Passed,
) -> None:
    """Classify what the journal does not know yet.

    `advance` is called for each picture with what became of it: CLASSIFIED, FAILED,
    DONE_BEFORE, or TWICE where the sources name it again. `warned` counts what was
    warned of. Raises FoveateError
    where the source, the server or the model fails, and OSError; what was
    answered until then is in the journal.
    """
    under_way: set[str] = set()

    def tasks() -> Generator[Task, None, None]:
        for position, found in enumerate(source.items()):
            if isinstance(found, Unreadable):
                journal.add(_failure(found, position))
                advance(FAILED)
            elif found.name in under_way or journal.is_of_this_run(found.name):
                advance(TWICE)
            elif journal.has(found.name, position, found.stamp):
                advance(DONE_BEFORE)
            else:
                under_way.add(found.name)
                yield Task(position, found)

    with closing(tasks()) as given:
        outcomes = classify_tasks(
            client, given, plan.options, in_flight=in_flight, patience=patience
        )
        with closing(outcomes):
            for task, answer in outcomes:
                for warning in answer.warnings if isinstance(answer, Classification) else ():
                    warned.note(warning, task.item.name)
                outcome = plan.outcome(task, answer)
                journal.add(outcome, task.item.stamp)
                under_way.discard(task.item.name)
                advance(FAILED if isinstance(outcome, Failure) else CLASSIFIED)
    journal.commit()


def _failure(folder: Unreadable, position: int) -> Failure:
    return Failure(
        name=folder.name,
        position=position,
        code=folder.code,
        reason="FOLDER_UNREADABLE",
        message=folder.message,
        transient=True,
    )


def finish(
    journal: Journal,
    outputs: Outputs,
    plan: Plan,
    classes: Classes,
    provenance: Mapping[str, object],
) -> Finished:
    """Write the finished files from the journal, with the run's `provenance`.

    Each appears whole or not at all, and writing them again gives the same, so
    that this too may be cut off. Raises OSError and MissingDistributionError.
    """
    evaluator = Evaluator(plan.model.scores)
    columns = Columns(
        top_k=plan.top_k,
        threshold=plan.threshold,
        labels=plan.model.labels,
        classes=classes,
        vectors=plan.vectors,
        cam=plan.cam_folder is not None,
        trust=plan.trust is not None,
        provenance=json.dumps(provenance, ensure_ascii=False, indent=1),
    )
    if plan.threshold is not None:
        # No more columns than the fullest row has classes.
        fullest = max(map(columns.reached, journal.rows()), default=0)
        columns = replace(columns, top_k=max(1, fullest))
    results = errors = unmatched = 0
    first_unmatched: str | None = None

    def rows() -> Iterator[Row]:
        nonlocal results, unmatched, first_unmatched
        for row in journal.rows():
            results += 1
            target = columns.target(row)
            if target is not None:
                evaluator.add(row, target)
            elif row.label:
                unmatched += 1
                first_unmatched = first_unmatched or row.label
            yield row

    def failures() -> Iterator[Failure]:
        nonlocal errors
        for failure in journal.failures():
            errors += 1
            yield failure

    write_errors(outputs.errors, failures())
    if not errors:
        outputs.errors.unlink()
    write_results(outputs.results, columns, rows())
    if outputs.provenance is not None:
        write_text(outputs.provenance, columns.provenance + "\n")
    evaluation = evaluator.result()
    if evaluation is not None:
        name, version = plan.model.name, plan.model.version
        page = render(evaluation, plan.model.labels, model=name, version=version)
        write_text(outputs.report, page)
    return Finished(
        results=results,
        errors=errors,
        evaluation=evaluation,
        unmatched=unmatched,
        first_unmatched=first_unmatched,
    )
