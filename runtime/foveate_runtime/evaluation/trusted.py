"""Calibrates the variants of a bundle on labelled pictures, with the pieces that serve them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import (
    IMAGE_INPUT,
    LOGITS_OUTPUT,
    InputSpec,
    Manifest,
    Scores,
)
from foveate_runtime.bundle.trust import SetMethod
from foveate_runtime.evaluation.accuracy import prepared_batches
from foveate_runtime.evaluation.completeness import IMAGES, with_completeness
from foveate_runtime.evaluation.labelled import (
    Labelled,
    LabelledError,
    TooFewPicturesError,
    open_labelled,
)
from foveate_runtime.evaluation.multilabel import TABLE_SUFFIX, LabelTable, open_table
from foveate_runtime.trust.answer import Assessor
from foveate_runtime.trust.calibration import COVERAGES, calibrate, supported
from foveate_runtime.trust.reliability import Bin, reliability
from foveate_runtime.trust.sets import needed
from foveate_runtime.trust.shares import softmax


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Logits, float32 [N, classes] by variant, and the labels, bool of that shape.

    `digest` is `sha256:<hex>` of the pictures as the classifier gets them, and of their
    labels. `images` are the first of them, uint8 [n, H, W, C].
    """

    logits: Mapping[str, NDArray[np.float32]]
    present: NDArray[np.bool_]
    digest: str
    images: NDArray[np.uint8]


def open_calibrating(data: str, bundle: Bundle, limit: int | None = None) -> Labelled:
    """Return the pictures that `data` names, with the labels that the model's scores need.

    Raises:
        LabelledError: they cannot be used: their labels are not the model's, or its scores
            are not probabilities.
    """
    table = data.lower().endswith(TABLE_SUFFIX)
    require_probabilities(bundle.manifest.scores, table=table)
    if table:
        return open_table(Path(data), bundle.labels, limit)
    return open_labelled(data, bundle.labels, limit)


def require_probabilities(scores: Scores, *, table: bool) -> None:
    """Raise LabelledError where labels, of a `table` or of folders, cannot calibrate scores."""
    if scores == "none":
        raise LabelledError("the model's scores are its logits: there is no confidence in them")
    if scores == "sigmoid" and not table:
        raise LabelledError(
            "the model's labels are independent (sigmoid), and a folder a class does not say "
            f"which of them a picture lacks: foveate calibrate takes a table, FILE{TABLE_SUFFIX}"
        )
    if scores == "softmax" and table:
        raise LabelledError("the model's classes exclude each other: give one folder a class")


def calibrate_bundle(
    bundle: Bundle,
    labelled: Labelled,
    coverages: Sequence[float] = (),
    advance: Callable[[int], object] = lambda _: None,
    *,
    corrupt: list[str] | None = None,
) -> Manifest:
    """Return the manifest with the calibration of every variant on labelled pictures.

    Args:
        bundle: whose variants to run, each on the backend that is preferred for it.
        labelled: the pictures, of `open_calibrating`.
        coverages: of the prediction sets; none for those of `COVERAGES` that the pictures
            suffice for.
        advance: called with the number of pictures of each batch.
        corrupt: as in `foveate_runtime.evaluation.accuracy.prepared_batches`.

    Raises:
        LabelledError: a picture cannot be decoded, or logits are not finite.
        TooFewPicturesError: there are too few pictures for a coverage.
        foveate_runtime.backends.base.BackendError: an engine fails.
    """
    manifest = bundle.manifest
    check_enough(len(labelled), coverages, manifest.scores)
    with ExitStack() as stack:
        runners = {
            entry.name: stack.enter_context(create_runner(bundle, variant=entry.name))
            for entry in manifest.variants
        }
        found = collect(
            runners, manifest.input, labelled, manifest.classes, advance=advance, corrupt=corrupt
        )
    # Corrupt pictures do not count.
    check_enough(len(found.present), coverages, manifest.scores)
    chosen = coverages or supported(COVERAGES, len(found.present), manifest.scores)
    variants = []
    for entry in manifest.variants:
        logits = found.logits[entry.name]
        if not np.isfinite(logits).all():
            raise LabelledError(f"{entry.name}: its logits for {labelled.name} are not all finite")
        trust = calibrate(
            logits,
            found.present,
            scores=manifest.scores,
            coverages=chosen,
            data=labelled.name,
            digest=found.digest,
        )
        variants.append(entry.model_copy(update={"trust": trust}))
    if not any(cam.completeness for cam in manifest.cams):
        manifest = with_completeness(bundle, found.images)
    return manifest.model_copy(update={"variants": tuple(variants)})


def calibrate_where_possible(
    bundle: Bundle, labelled: Labelled, coverages: Sequence[float]
) -> Manifest:
    """Return the manifest as `calibrate_bundle` does, corrupt pictures left out.

    Without coverages, it is returned unchanged if the pictures cannot calibrate the model:
    if they are too few, or its scores are no probabilities of classes that exclude each
    other. Errors as in `calibrate_bundle`.
    """
    if bundle.manifest.scores != "softmax" and not coverages:
        return bundle.manifest
    try:
        return calibrate_bundle(bundle, labelled, coverages, corrupt=[])
    except TooFewPicturesError:
        if coverages:
            raise
        return bundle.manifest


def collect(
    runners: Mapping[str, Runner],
    spec: InputSpec,
    labelled: Labelled,
    classes: int,
    *,
    advance: Callable[[int], object] = lambda _: None,
    corrupt: list[str] | None = None,
) -> Collected:
    """Run every variant on the pictures, each of which is decoded once."""
    logits: dict[str, list[NDArray[Any]]] = {name: [] for name in runners}
    present = []
    digest = _Digest()
    firsts: list[NDArray[np.uint8]] = []
    for images, targets in prepared_batches(labelled, spec, corrupt):
        for name, runner in runners.items():
            logits[name].append(runner.run({IMAGE_INPUT: images}, [LOGITS_OUTPUT])[LOGITS_OUTPUT])
        rows = (
            labelled.present[targets]
            if isinstance(labelled, LabelTable)
            else np.eye(classes, dtype=np.bool_)[targets]
        )
        digest.add(images, rows)
        present.append(rows)
        firsts = firsts or [*images[:IMAGES]]
        advance(len(images))
    return Collected(
        logits={name: np.concatenate(batches) for name, batches in logits.items()},
        present=np.concatenate(present),
        digest=str(digest),
        images=np.stack(firsts),
    )


def check_enough(images: int, coverages: Sequence[float], scores: Scores) -> None:
    """Raise TooFewPicturesError where the pictures are too few for a coverage."""
    coverage = max(coverages or COVERAGES[:1])
    least = needed(coverage, scores)
    if images < least:
        raise TooFewPicturesError(
            f"a coverage of {coverage:g} takes at least {least} pictures; there are {images}"
        )


class _Digest:
    """The digest of pictures, uint8 [N, H, W, C], and of their labels, bool [N, classes]."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()

    def add(self, images: NDArray[np.uint8], present: NDArray[np.bool_]) -> None:
        self._state.update(images.data)
        self._state.update(np.packbits(present).data)

    def __str__(self) -> str:
        return f"sha256:{self._state.hexdigest()}"


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """What the prediction sets of a coverage did: a share from 0 to 1, and classes a set."""

    coverage: float
    set_method: SetMethod
    covered: float
    mean_size: float
    empty: float


class TrustTally:
    """Compares the trust in a variant's answers, whose classes exclude each other, with labels.

    `add` is the `observe` of `foveate_runtime.evaluation.accuracy.measure_accuracy`.
    """

    def __init__(self, manifest: Manifest, variant: str) -> None:
        self._classes = manifest.classes
        self._trust = manifest.variant(variant).trust
        self._assessor = (
            None if self._trust is None else Assessor(self._trust, manifest.policy, manifest.scores)
        )
        self._digest = _Digest()
        self._right: list[NDArray[np.bool_]] = []
        self._confidence: dict[str, list[NDArray[np.float64]]] = {"before": [], "after": []}
        self._covered: dict[tuple[float, SetMethod], list[NDArray[np.int64]]] = {}

    def add(
        self, images: NDArray[np.uint8], logits: NDArray[Any], targets: NDArray[np.int64]
    ) -> None:
        """Count a batch: its pictures, float logits [N, classes] and classes [N]."""
        self._digest.add(images, np.eye(self._classes, dtype=np.bool_)[targets])
        self._right.append(logits.argmax(axis=1) == targets)
        self._confidence["before"].append(softmax(logits).max(axis=1))
        if self._trust is None or self._assessor is None:
            return
        confidence = self._assessor.confidence(logits)
        if confidence is not None:
            self._confidence["after"].append(confidence.max(axis=1))
        for thresholds in self._trust.sets:
            for method in get_args(SetMethod):
                members = self._assessor.members(logits, thresholds, method)
                row = [members[np.arange(len(targets)), targets], members.sum(axis=1)]
                self._covered.setdefault((thresholds.coverage, method), []).append(np.stack(row))

    @property
    def bins(self) -> dict[str, list[Bin]]:
        """The reliability of the scores `before` calibration, and `after` where there is one."""
        right = np.concatenate(self._right)
        return {
            name: reliability(np.concatenate(parts), right)
            for name, parts in self._confidence.items()
            if parts
        }

    @property
    def sets(self) -> list[SetScore]:
        """What the prediction sets of each coverage did."""
        found = []
        for (coverage, method), parts in self._covered.items():
            covered, sizes = np.concatenate(parts, axis=1)
            found.append(
                SetScore(
                    coverage=coverage,
                    set_method=method,
                    covered=float(covered.mean()),
                    mean_size=float(sizes.mean()),
                    empty=float((sizes == 0).mean()),
                )
            )
        return found

    @property
    def seen_before(self) -> bool:
        """Whether these are the very pictures of the calibration, which flatter it."""
        return self._trust is not None and self._trust.digest == str(self._digest)
