"""A batch run: from the pictures through the journal to the finished files."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from foveate_client._client import Client
from foveate_client._exceptions import FoveateError
from foveate_client._results import Classification, Heatmap
from foveate_client.batch.classes import Classes
from foveate_client.batch.evaluation import Evaluation, Evaluator
from foveate_client.batch.fiftyone import write_fiftyone
from foveate_client.batch.journal import Failure, Journal, Row
from foveate_client.batch.rows import Plan
from foveate_client.batch.sources import Passed, Source, Unreadable
from foveate_client.batch.stream import Answers, Task, ask
from foveate_client.batch.tables import Columns, write_errors, write_results, write_text
from foveate_client.report import tiles
from foveate_client.report.entries import SCORES, Entry
from foveate_client.report.page import Heading, render
from foveate_client.report.writer import ReportWriter

CLASSIFIED, FAILED, DONE_BEFORE, TWICE = "classified", "failed", "done before", "named twice"


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The output files of a run: results, errors, report, and FiftyOne's folder."""

    results: Path
    errors: Path
    report: Path
    fiftyone: Path | None = None

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
    """The contents of the finished files; `evaluation` is None where no right class is known.

    `unmatched` are the results whose folder or record names no class, and
    `first_unmatched` is the first such name. `report` are the files and folders of the
    report, none where there is none; `not_in_fiftyone` are the results without a file of
    their own, which FiftyOne's folder leaves out.
    """

    results: int
    errors: int
    report: tuple[Path, ...]
    not_in_fiftyone: int
    evaluation: Evaluation | None
    unmatched: int
    first_unmatched: str | None


def classify_all(
    client: Client,
    source: Source,
    journal: Journal,
    plan: Plan,
    classes: Classes,
    *,
    answers: Answers,
    patience: float,
    advance: Callable[[str], object],
    warned: Passed,
) -> None:
    """Classify the pictures that the journal does not contain, by `answers`.

    `advance` is called for each picture with its outcome: CLASSIFIED, FAILED,
    DONE_BEFORE, or TWICE where the sources name it again. `warned` counts the
    warnings. For a report, `client` requests the map of the right class as well, where
    another of `classes` was found. Raises FoveateError where the source, the server or
    the model fails, and OSError; the answers until then are in the journal.
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

    with closing(tasks()) as given, closing(answers(given)) as answered:
        for task, answer in answered:
            for warning in answer.warnings if isinstance(answer, Classification) else ():
                warned.note(warning, task.item.name)
            right: Heatmap | None = None
            if (missed := _missed(answer, plan, task, classes)) is not None:
                again = ask(client, task.item, plan.explanation(missed), patience)
                if isinstance(again, FoveateError):
                    warned.note("without a map of the right class", task.item.name)
                else:
                    right = again.cams[0]
            outcome = plan.outcome(task, answer, right)
            journal.add(outcome, task.item.stamp)
            under_way.discard(task.item.name)
            if isinstance(outcome, Row) and outcome.cam is None and plan.cam_folder is not None:
                warned.note("without an overlay: decoding takes too much memory", task.item.name)
            advance(FAILED if isinstance(outcome, Failure) else CLASSIFIED)
    journal.commit()


def _missed(
    answer: Classification | FoveateError, plan: Plan, task: Task, classes: Classes
) -> int | None:
    """Return the right class of a picture that is taken for another, for its map; else None."""
    if not plan.tile_maps or isinstance(answer, FoveateError) or task.item.label is None:
        return None
    target = classes.find(task.item.label)
    return None if target == answer.predictions[0].class_id else target


def _failure(found: Unreadable, position: int) -> Failure:
    return Failure(
        name=found.name,
        position=position,
        code=found.code,
        reason=found.reason,
        message=found.message,
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

    Each appears whole or not at all, and writing them again gives the same files, so
    that this may be interrupted as well. Raises OSError and MissingDistributionError.
    """
    model = plan.model
    evaluator = Evaluator(model.scores)
    heading = Heading(
        model=model.name, version=model.version, labels=model.labels, scores=model.scores
    )
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
    written: list[Path] = []
    with ExitStack() as stack:
        report = stack.enter_context(ReportWriter(outputs.report, heading)) if plan.tiles else None

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
                if report is not None:
                    report.add(_entry(row, target), _tiles(row, target))
                yield row

        def failures() -> Iterator[Failure]:
            nonlocal errors
            for failure in journal.failures():
                errors += 1
                if report is not None:
                    report.fail(failure.name, failure.message)
                yield failure

        write_errors(outputs.errors, failures())
        if not errors:
            outputs.errors.unlink()
        write_results(outputs.results, columns, rows())
        if outputs.provenance is not None:
            write_text(outputs.provenance, columns.provenance + "\n")
        evaluation = evaluator.result()
        if report is not None:
            written = report.write(evaluation)
        elif evaluation is not None:
            write_text(outputs.report, render(heading, evaluation))
            written = [outputs.report]
    left_out = 0
    if outputs.fiftyone is not None:
        folder = outputs.fiftyone
        left_out = write_fiftyone(folder, columns, journal.rows(), scores=model.scores)
    return Finished(
        results=results,
        errors=errors,
        report=tuple(written),
        not_in_fiftyone=left_out,
        evaluation=evaluation,
        unmatched=unmatched,
        first_unmatched=first_unmatched,
    )


def _entry(row: Row, target: int | None) -> Entry:
    return Entry(
        name=row.name,
        class_ids=row.class_ids[:SCORES].tolist(),
        scores=row.scores[:SCORES].tolist(),
        found=row.class_ids[:1].tolist(),
        targets=None if target is None else [target],
        surprise=float(row.scores[0]),
        trust=row.trust,
    )


def _tiles(row: Row, target: int | None) -> list[tiles.Tile]:
    """Return the tiles of a row, without a map of a class that is its right one no more.

    The file of --labels may be another one when a run goes on.
    """
    wanted = {tiles.PICTURE, int(row.class_ids[0]), target}
    return [tile for tile in tiles.unpack(row.tiles) if tile.class_id in wanted]
