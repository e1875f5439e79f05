"""A batch run: from the pictures through the journal to the finished files."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from foveate_client._client import Client
from foveate_client.batch.classes import Classes
from foveate_client.batch.evaluation import Evaluation, Evaluator
from foveate_client.batch.journal import Failure, Journal, Row
from foveate_client.batch.report import render
from foveate_client.batch.rows import Plan
from foveate_client.batch.sources import Source, Unreadable
from foveate_client.batch.stream import Task, classify_tasks
from foveate_client.batch.tables import Columns, write_errors, write_results, write_text


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a run writes: the results, the errors, and the evaluation's report."""

    results: Path
    errors: Path
    report: Path

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
    """What the finished files hold; `evaluation` is None where no right class is known."""

    results: int
    errors: int
    evaluation: Evaluation | None


def classify_all(
    client: Client,
    source: Source,
    journal: Journal,
    plan: Plan,
    *,
    in_flight: int,
    patience: float,
    advance: Callable[[bool], object],
) -> None:
    """Classify what the journal does not know yet.

    `advance` is called for each picture, with whether it was done before. Raises
    FoveateError where the source, the server or the model fails, and OSError;
    what was answered until then is in the journal.
    """

    def tasks() -> Generator[Task, None, None]:
        for position, found in enumerate(source.items()):
            if isinstance(found, Unreadable):
                journal.add(_failure(found, position))
            elif journal.has(found.name, position, found.stamp):
                advance(True)
            else:
                yield Task(position, found)

    with closing(tasks()) as given:
        outcomes = classify_tasks(
            client, given, plan.options, in_flight=in_flight, patience=patience
        )
        with closing(outcomes):
            for task, answer in outcomes:
                journal.add(plan.outcome(task, answer), task.item.stamp)
                advance(False)
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


def finish(journal: Journal, outputs: Outputs, plan: Plan, classes: Classes) -> Finished:
    """Write the finished files from the journal.

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
    )
    if plan.threshold is not None:
        # No more columns than the fullest row has classes.
        fullest = max(map(columns.reached, journal.rows()), default=0)
        columns = replace(columns, top_k=max(1, fullest))
    results = errors = 0

    def rows() -> Iterator[Row]:
        nonlocal results
        for row in journal.rows():
            results += 1
            target = columns.target(row)
            if target is not None:
                evaluator.add(row, target)
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
    evaluation = evaluator.result()
    if evaluation is not None:
        name, version = plan.model.name, plan.model.version
        page = render(evaluation, plan.model.labels, model=name, version=version)
        write_text(outputs.report, page)
    return Finished(results=results, errors=errors, evaluation=evaluation)
