"""A benchmark's results as one document: `results.json`."""

from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError

from foveate_bench.loadgen import LoadGenResult
from foveate_bench.machine import Machine
from foveate_bench.operators import Profile
from foveate_bench.recommend import Recommendation
from foveate_bench.results import (
    Accuracy,
    Amount,
    Measurement,
    OutputKind,
    Record,
    Refusal,
    Ties,
)
from foveate_bench.roofline import Roofline
from foveate_runtime.bundle.manifest import Name, Positive

RESULTS_FILE = "results.json"


class DocumentError(Exception):
    """A file that holds no results; the message names it and what is wrong."""


class Settings(Record):
    """How it was measured.

    `seconds` is the time of a turn, in which a case runs again and again, after
    runs of a fifth of that time that are not counted.
    """

    batches: tuple[Positive, ...]
    outputs: tuple[OutputKind, ...]
    rounds: Positive
    seconds: Amount


class Model(Record):
    """A model that was measured.

    `parameters` counts its weights; `height`, `width` and `channels` are the
    input's; `pictures` says what it was measured on; `file_bytes` is the size of
    each variant's graph.
    """

    name: Name
    version: Positive
    classifier: str
    parameters: Positive
    height: Positive
    width: Positive
    channels: Positive
    classes: Positive
    pictures: str
    file_bytes: dict[str, int]


class Report(Record):
    """All results of one run of `foveate bench`.

    `complete` is False where the run was stopped before its last round.
    `load_average` is the machine's at the start, over one minute.
    """

    format: Literal["foveate.bench/1"] = "foveate.bench/1"
    created: datetime
    complete: bool
    load_average: Amount
    machine: Machine
    settings: Settings
    models: tuple[Model, ...]
    measurements: tuple[Measurement, ...]
    accuracies: tuple[Accuracy, ...] = ()
    ties: tuple[Ties, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    roofline: Roofline | None = None
    operators: tuple[Profile, ...] = ()
    loadgen: tuple[LoadGenResult, ...] = ()
    recommendation: Recommendation | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a document; raises DocumentError and OSError."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise DocumentError(f"{path}: {where}: {first['msg']}") from error

    def write(self, folder: Path) -> Path:
        """Write the document into `folder` and return its path; raises OSError."""
        path = folder / RESULTS_FILE
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return path
