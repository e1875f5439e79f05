"""Whether a variant is as good as fp32, and how many layers must stay float until it is."""

from collections.abc import Callable
from pathlib import Path

from foveate_export.errors import AccuracyError
from foveate_export.progress import Stage
from foveate_export.publish.variants.calibration import Calibration
from foveate_export.publish.variants.quantise import FITS, Candidate, Scheme, candidates
from foveate_runtime.bundle.manifest import Accuracy, Quantisation

MIN_AGREEMENT = 0.96
"""The share of the calibration pictures that must keep their best class. What moves
is mostly between two near classes, half of it to the right one."""

MAX_DROP = 1.0
"""The points of top-1 accuracy that a variant may lose by default."""


def check_drop(variant: str, scored: Accuracy, fp32: Accuracy, max_drop: float) -> None:
    """Raise AccuracyError if the accuracy of `variant` is over `max_drop` points below fp32's."""
    reason = _drop(scored, fp32, max_drop)
    if reason:
        raise AccuracyError(f"{variant}: {reason}")


def quantise_until_accepted(
    variant: str,
    source: Path,
    target: Path,
    *,
    scheme: Scheme,
    calibration: Calibration,
    score: Callable[[], Accuracy | None],
    fp32: Accuracy | None,
    max_drop: float,
    stage: Stage,
) -> tuple[Quantisation, Accuracy | None]:
    """Write the int8 variant to `target` with as few layers in float as it takes.

    Args:
        variant: its name, for messages.
        source: the fp32 graph.
        target: where the int8 graph goes.
        scheme: how activations are quantised.
        calibration: what ranges are measured on, and the best classes compared on.
        score: measures the graph at `target` on the labelled data; None without any.
        fp32: the accuracy of `source` on that data.
        max_drop: the points of top-1 that may be lost.
        stage: called for each step.

    Raises:
        AccuracyError: even with a fifth of the layers in float too much is lost.
        ExportError: the graph has nothing to quantise.
    """
    reasons: list[str] = []
    tries = candidates(source, target, calibration.images, scheme, stage=stage)
    for candidate in tries:
        scored = score()
        reasons = [reason for reason in (_disagreement(candidate, calibration),) if reason]
        if scored and fp32:
            reasons += [reason for reason in (_drop(scored, fp32, max_drop),) if reason]
        if not reasons:
            tries.close()
            return _entry(candidate, scheme, calibration), scored
    raise AccuracyError(
        f"{variant}: {' and '.join(reasons)}, with the "
        f"{len(candidate.float_layers)} most sensitive layers in float"
    )


def _disagreement(candidate: Candidate, calibration: Calibration) -> str | None:
    if candidate.agreement >= MIN_AGREEMENT:
        return None
    return (
        f"the best class is that of fp32 on {candidate.agreement:.1%} of "
        f"{len(calibration)} pictures ({calibration.description}), "
        f"and {MIN_AGREEMENT:.0%} is needed"
    )


def _drop(scored: Accuracy, fp32: Accuracy, max_drop: float) -> str | None:
    # In pictures, because shares of them are not exact.
    lost = round((fp32.top1 - scored.top1) * scored.images)
    points = 100 * lost / scored.images
    if points <= max_drop:
        return None
    return (
        f"top-1 is {scored.top1:.2%} of {scored.images} pictures ({scored.data}), "
        f"{points:.2f} points below fp32's {fp32.top1:.2%}; --max-drop accepts {max_drop:g}"
    )


def _entry(candidate: Candidate, scheme: Scheme, calibration: Calibration) -> Quantisation:
    return Quantisation(
        scheme=scheme,
        data=calibration.description,
        images=len(calibration),
        digest=calibration.digest,
        pairs_fit=FITS[scheme],
        float_layers=candidate.float_layers,
        agreement=candidate.agreement,
        sqnr=candidate.sqnr,
    )
