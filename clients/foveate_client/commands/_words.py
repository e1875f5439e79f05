"""Sentences about an answer, for people."""

from collections.abc import Sequence

from foveate_client._results import Classification, Heatmap, MapCheck, Trust

_NAMED = 8
"""The most classes of a prediction set that are named."""

SCORES = {
    "sigmoid": "each label has a score by itself",
    "none": "scores are logits",
}
"""Sentences about the kinds of scores other than softmax."""


def score(value: float, scores: str) -> str:
    """Return a score as text for people; `scores` is its kind."""
    return f"{value:{'.4g' if scores == 'none' else '.1%'}}"


def class_name(class_id: int, labels: Sequence[str]) -> str:
    """Return the label of a class, or its number where it has none."""
    return labels[class_id] if class_id < len(labels) else f"class {class_id}"


def trust_sentences(result: Classification, trust: Trust, labels: Sequence[str]) -> list[str]:
    """Return sentences on the trust in an answer, except on whether the model abstains."""
    lines = []
    best = result.predictions[0] if result.predictions else None
    if best is not None and best.confidence is not None:
        lines.append(
            f"of pictures like those of the calibration, {best.confidence:.1%} of the answers with "
            "this score are right"
        )
    named = [class_name(x, labels) for x in trust.prediction_set[:_NAMED]]
    more = len(trust.prediction_set) - len(named)
    members = ", ".join(named) + (f" and {more} more" if more else "")
    lines.append(f"the set for a coverage of {trust.coverage:.4g}: {members or 'no class'}")
    lines.append(
        f"more unusual than {trust.ood_percentile:.0f} % of the pictures of the calibration"
    )
    return lines


def opponent(cam: Heatmap, labels: Sequence[str]) -> str:
    """Name the class whose logit was subtracted; empty where there is none."""
    return "" if cam.against is None else f" against {class_name(cam.against, labels)}"


def findings(cam: Heatmap) -> str:
    """Describe a map: its values, the place of the largest, and how much it explains."""
    what = "logit" if cam.against is None else "difference of the logits"
    share = "" if cam.explained is None else f"; it explains {cam.explained:.1%} of the {what}"
    share += _worth(cam.check)
    if not cam.has_evidence:
        return f"no positive evidence, the largest value is {cam.maximum:.3g}{share}"
    x, y = cam.peak
    values = f"values {cam.minimum:.3g} to {cam.maximum:.3g}"
    return f"{values}, the largest at x {x:.0f}, y {y:.0f}{share}"


def _worth(check: MapCheck | None) -> str:
    if check is None:
        return ""
    return (
        f"; without what it shows the score falls by {check.drop:.3g}, "
        f"without as much of anything by {check.random_drop:.3g}"
    )
