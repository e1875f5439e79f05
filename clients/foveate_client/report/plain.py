"""A report of arrays and numbers, which other distributions find by entry point."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from foveate_client._images import Prepared
from foveate_client.batch.evaluation import TOP, Evaluator
from foveate_client.batch.journal import Row, RowTrust
from foveate_client.report.entries import Entry
from foveate_client.report.page import Heading
from foveate_client.report.tiles import Map, draw
from foveate_client.report.writer import ReportWriter


class PlainReport:
    """The report of `model` at `path`, of pictures that are given as arrays and numbers.

    `labels` are the model's by class id, and `scores` "softmax", "sigmoid" or "none".
    A context manager. Raises OSError where its folder cannot be written.
    """

    def __init__(
        self, path: Path, *, model: str, version: str, labels: Sequence[str], scores: str
    ) -> None:
        heading = Heading(model=model, version=version, labels=labels, scores=scores)
        self._writer = ReportWriter(path, heading)
        self._evaluator = Evaluator(scores)
        self._count = 0

    def add(
        self,
        name: str,
        image: npt.NDArray[np.uint8],
        *,
        class_ids: npt.NDArray[np.int64],
        scores: npt.NDArray[np.floating[Any]],
        target: int,
        maps: Mapping[int, npt.NDArray[np.float32]],
        trust: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a picture whose classes exclude each other.

        Args:
            name: its name.
            image: as the classifier gets it, uint8 [H, W, C].
            class_ids: its best classes, [k], best first, five where there are as many.
            scores: theirs, [k].
            target: its right class.
            maps: float32 [h, w] by class, over the whole image, in the order to be shown.
            trust: the fields of `foveate_client.batch.journal.RowTrust`, None for none.

        Raises:
            OSError: the report's folder cannot be written.
        """
        row = Row(
            name=name,
            position=self._count,
            label=None,
            class_ids=class_ids[:TOP].astype(np.int32),
            scores=scores[:TOP].astype(np.float32),
            vectors=np.empty(0, dtype=np.float32),
            cam=None,
            trust=_trust(trust),
        )
        self._count += 1
        self._evaluator.add(row, target)
        self.add_labelled(
            name,
            image,
            class_ids=class_ids,
            scores=scores,
            found=[int(class_ids[0])],
            targets=[target],
            surprise=float(scores[0]),
            maps=maps,
            trust=trust,
        )

    def add_labelled(
        self,
        name: str,
        image: npt.NDArray[np.uint8],
        *,
        class_ids: npt.NDArray[np.int64],
        scores: npt.NDArray[np.floating[Any]],
        found: Sequence[int],
        targets: Sequence[int],
        surprise: float,
        maps: Mapping[int, npt.NDArray[np.float32]],
        trust: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a picture that may have several labels: `targets` are right, `found` were found.

        `surprise` is how far the worst score lies on the wrong side of the threshold. The
        rest is as in `add`.
        """
        entry = Entry(
            name=name,
            class_ids=class_ids[:TOP].tolist(),
            scores=scores[:TOP].tolist(),
            found=found,
            targets=targets,
            surprise=surprise,
            trust=_trust(trust),
        )
        layers = [Map(class_id, array) for class_id, array in maps.items()]
        self._writer.add(entry, draw(Prepared(image), layers))

    def fail(self, name: str, reason: str) -> None:
        """Add a picture that has no answer."""
        self._writer.fail(name, reason)

    def write(self, figures: Mapping[str, str] | None = None) -> list[Path]:
        """Write the report, with `figures` beside its own, and return the files written.

        Raises OSError.
        """
        return self._writer.write(self._evaluator.result(), figures)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def _trust(fields: Mapping[str, Any] | None) -> RowTrust | None:
    return None if fields is None else RowTrust(**fields)
