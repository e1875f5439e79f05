"""Checkpoints: a folder with a network's weights and all that is known of them.

    model.safetensors   the state dict
    checkpoint.json     name, arguments, input, labels, metrics, data, seed, versions

Nothing in a checkpoint is executed when it is read.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import registry
from foveate_train.classifier import Argument, Classifier
from foveate_train.environment import versions
from foveate_train.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
RECORD_FILE = "checkpoint.json"


class Record(BaseModel):
    """The contents of `checkpoint.json`.

    `metrics` holds what was measured, for example `test_accuracy`, a share from
    0 to 1; `data_digest` identifies the training data; `versions` names the
    packages that trained it; `sha256` is that of the weights' file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["foveate.checkpoint/1"] = "foveate.checkpoint/1"
    classifier: str
    arguments: dict[str, Argument]
    input: InputSpec
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    metrics: dict[str, float]
    data_digest: str
    seed: int
    created: datetime
    versions: dict[str, str]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: the classifier with its weights, and its record."""

    classifier: Classifier
    record: Record

    @property
    def metrics(self) -> Mapping[str, float]:
        """What was measured, by name."""
        return self.record.metrics


def save(
    folder: Path,
    classifier: Classifier,
    *,
    metrics: Mapping[str, float],
    data_digest: str,
    seed: int,
) -> Record:
    """Write a checkpoint; `folder` is replaced as a whole or stays as it was.

    Raises:
        CheckpointError: if `check_target` objects or the disk refuses.
    """
    check_target(folder)
    # Channels-last tensors are dense and yet not contiguous, as the format wants.
    state = {
        key: tensor.detach().cpu().contiguous()
        for key, tensor in classifier.module.state_dict().items()
    }
    try:
        with _replacing(folder) as temporary:
            weights = temporary / WEIGHTS_FILE
            safetensors.torch.save_file(state, weights)
            record = Record(
                classifier=classifier.name,
                arguments=classifier.arguments,
                input=classifier.input,
                labels=classifier.labels,
                metrics=dict(metrics),
                data_digest=data_digest,
                seed=seed,
                created=datetime.now(UTC),
                versions=versions(),
                sha256=_sha256(weights),
            )
            text = json.dumps(record.model_dump(mode="json"), indent=2) + "\n"
            (temporary / RECORD_FILE).write_text(text, encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder}: cannot be written ({error})") from error
    return record


def check_target(folder: Path) -> None:
    """See to it that `save` would destroy nothing but a checkpoint.

    Raises:
        CheckpointError: if `folder` is a file or a folder of other things.
    """
    if folder.is_dir():
        free = (folder / RECORD_FILE).is_file() or not any(folder.iterdir())
    else:
        free = not folder.exists()
    if not free:
        raise CheckpointError(f"checkpoint {folder}: is there already and is no checkpoint")


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint and build its classifier, in evaluation mode.

    Raises:
        CheckpointError: if a file is missing, damaged or does not hold what it
            should.
        UnknownClassifierError, ArgumentsError, WeightsError: if the registry
            no longer has the classifier, its arguments, or its keys and shapes.
    """
    record = _read_record(folder)
    weights = folder / WEIGHTS_FILE
    try:
        digest = _sha256(weights)
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder}: {WEIGHTS_FILE}: {error.strerror}") from error
    if digest != record.sha256:
        raise CheckpointError(
            f"checkpoint {folder}: {WEIGHTS_FILE} has the SHA-256 {digest}, "
            f"and {RECORD_FILE} says {record.sha256}"
        )
    built = registry.create(record.classifier, weights=str(weights), **record.arguments)
    return Checkpoint(replace(built, input=record.input, labels=record.labels), record)


def _read_record(folder: Path) -> Record:
    try:
        return Record.model_validate_json((folder / RECORD_FILE).read_bytes())
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder}: {RECORD_FILE}: {error.strerror}") from error
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()
        )
        raise CheckpointError(f"checkpoint {folder}: {RECORD_FILE}: {found}") from error


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give a new folder that takes the place of `folder` once the block succeeds."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    displaced = temporary.with_name(temporary.name + ".old")
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rename(displaced)
        temporary.rename(folder)
    except BaseException:
        if displaced.exists() and not folder.exists():
            displaced.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(displaced, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
