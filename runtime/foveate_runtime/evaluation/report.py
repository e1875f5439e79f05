"""A report of labelled pictures: the answers of a bundle and their maps.

The page is written by the entry point `html` of `REPORTS`, which foveate-client has: this
distribution passes it arrays and numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import Runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    IMAGE_INPUT,
    LOGITS_OUTPUT,
    Manifest,
)
from foveate_runtime.bundle.scores import score
from foveate_runtime.evaluation.accuracy import FIRST, prepared_batches
from foveate_runtime.evaluation.labelled import Labelled, written
from foveate_runtime.evaluation.multilabel import LabelTable
from foveate_runtime.trust.answer import Assessor

REPORTS = "foveate.reports"
"""The entry point group of what writes reports: classes as `Report`, made with the path, and by
keyword the model, its version, its labels and its scores."""

_BEST = -1
"""A class id of the graph contract: the best class."""

_RIGHT = 3
"""Right labels of a picture, at most, whose maps are computed; the one missed most is shown."""


class ReportError(Exception):
    """A report cannot be written here: something is not installed."""


class Report(Protocol):
    """Receives the pictures of a report, and writes it."""

    def add(
        self,
        name: str,
        image: NDArray[np.uint8],
        *,
        class_ids: NDArray[np.int64],
        scores: NDArray[Any],
        target: int,
        maps: Mapping[int, NDArray[np.float32]],
        trust: Mapping[str, Any] | None,
    ) -> None:
        """Take a picture whose classes exclude each other."""

    def add_labelled(
        self,
        name: str,
        image: NDArray[np.uint8],
        *,
        class_ids: NDArray[np.int64],
        scores: NDArray[Any],
        found: Sequence[int],
        targets: Sequence[int],
        surprise: float,
        maps: Mapping[int, NDArray[np.float32]],
        trust: Mapping[str, Any] | None,
    ) -> None:
        """Take a picture that may have several labels."""

    def fail(self, name: str, reason: str) -> None:
        """Take a picture that could not be decoded."""

    def write(self, figures: Mapping[str, str] | None = None) -> list[Path]:
        """Write the report with these figures on it, and return the files written."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_report(path: Path, bundle: Bundle) -> Report:
    """Return an empty report of a bundle. Raises ReportError and OSError."""
    point = next(iter(entry_points(group=REPORTS, name="html")), None)
    if point is None:
        raise ReportError("a report takes foveate-client: pip install foveate-client")
    manifest = bundle.manifest
    report: Report = point.load()(
        path,
        model=manifest.name,
        version=str(manifest.version),
        labels=bundle.labels,
        scores=manifest.scores,
    )
    return report


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """The outputs for one picture: logits [classes] and maps [h, w] by class."""

    logits: NDArray[Any]
    maps: Mapping[int, NDArray[np.float32]]


def fill_report(
    report: Report,
    runner: Runner,
    manifest: Manifest,
    labelled: Labelled,
    *,
    threshold: float | None = None,
    advance: Callable[[int], object] = lambda _: None,
    skip_corrupt: bool = False,
) -> None:
    """Run labelled pictures, each with the maps of its best and its right class, into `report`.

    Args:
        report: takes them.
        runner: the variant, loaded.
        manifest: the bundle's.
        labelled: the pictures.
        threshold: the score from which on a picture of a table has a label.
        advance: called with the number of pictures of each batch, once it is classified.
        skip_corrupt: whether pictures that cannot be decoded are listed in the report, and
            do not end this.

    Raises:
        LabelledError: a picture cannot be decoded.
        OSError: the report's folder cannot be written.
        foveate_runtime.backends.base.BackendError: the engine fails.
    """
    trust = manifest.variant(runner.variant).trust
    assessor = None if trust is None else Assessor(trust, manifest.policy, manifest.scores)
    names: list[str] = []
    corrupt: list[str] | None = [] if skip_corrupt else None
    for images, targets in prepared_batches(labelled, manifest.input, corrupt, names):
        present = labelled.present[targets] if isinstance(labelled, LabelTable) else None
        right = targets[:, None] if present is None else _right_labels(present)
        answers = _run(runner, manifest, images, right)
        logits = np.stack([answer.logits for answer in answers])
        assessed = (
            [None] * len(images)
            if assessor is None
            else [_trust_of(each) for each in assessor.assess(logits)]
        )
        # Stable, so that equal logits rank as in the graph: the lower class first.
        order = np.argsort(-logits, axis=1, kind="stable")
        scores = score(logits, manifest.scores)
        for place, (image, answer) in enumerate(zip(images, answers, strict=True)):
            best, name = order[place], written(names[place])
            common: dict[str, Any] = {
                "class_ids": best[:FIRST],
                "scores": scores[place, best[:FIRST]],
                "trust": assessed[place],
            }
            if present is None or threshold is None:
                target = int(targets[place])
                shown = _maps(answer, best, [target])
                report.add(name, image, target=target, maps=shown, **common)
                continue
            found = scores[place] >= threshold
            apart = found != present[place]
            distance = np.abs(scores[place] - threshold)[apart]
            missed = [each for each in best[::-1] if present[place, each] and not found[each]]
            report.add_labelled(
                name,
                image,
                found=np.flatnonzero(found).tolist(),
                targets=np.flatnonzero(present[place]).tolist(),
                surprise=float(distance.max(initial=0.0)),
                maps=_maps(answer, best, missed),
                **common,
            )
        names.clear()
        advance(len(images))
    for line in corrupt or ():
        name, _, reason = line.partition(": ")
        report.fail(written(name), written(reason))


def _right_labels(present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the first labels of each picture, int64 [N, _RIGHT], the best class for none."""
    found = np.full((len(present), _RIGHT), _BEST, dtype=np.int64)
    for row, each in zip(found, present, strict=True):
        labels = np.flatnonzero(each)[:_RIGHT]
        row[: len(labels)] = labels
    return found


def _run(
    runner: Runner, manifest: Manifest, images: NDArray[np.uint8], right: NDArray[np.int64]
) -> list[_Answer]:
    if not manifest.cams:
        logits = runner.run({IMAGE_INPUT: images}, [LOGITS_OUTPUT])[LOGITS_OUTPUT]
        return [_Answer(logits=each, maps={}) for each in logits]
    output = CAM_PREFIX + manifest.cams[0].method
    class_ids = np.column_stack([np.full(len(images), _BEST, dtype=np.int64), right])
    inputs: dict[str, NDArray[Any]] = {IMAGE_INPUT: images, CLASS_IDS_INPUT: class_ids}
    outputs = runner.run(inputs, [LOGITS_OUTPUT, output])
    answers = []
    for logits, asked, maps in zip(outputs[LOGITS_OUTPUT], class_ids, outputs[output], strict=True):
        best = int(np.argsort(-logits, kind="stable")[0])
        classes = [best if each == _BEST else int(each) for each in asked]
        # Copies: what a batch's maps are a view of would be held with each of them.
        by_class = {c: each.astype(np.float32) for c, each in zip(classes, maps, strict=True)}
        answers.append(_Answer(logits=logits, maps=by_class))
    return answers


def _maps(
    answer: _Answer, best: NDArray[np.int64], right: Sequence[int]
) -> dict[int, NDArray[np.float32]]:
    """Return the map of the best class, and that of the first right one that has a map."""
    wanted = [int(best[0]), *map(int, right)]
    had = [each for each in dict.fromkeys(wanted) if each in answer.maps]
    return {each: answer.maps[each] for each in had[:2]}


def _trust_of(assessment: Any) -> dict[str, Any]:
    known = asdict(assessment)
    confidence = known.pop("confidence")
    return known | {"confidence": None if confidence is None else float(confidence.max())}
