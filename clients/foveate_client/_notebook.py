"""How a notebook displays results: as HTML and PNG."""

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING

from foveate_client._models import Model
from foveate_client._results import Classification, Prediction

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 512
"""Pixels of the longer side of a map that is shown."""

_LABELS = 12
"""Of a model; the others are counted."""

_CELL = "text-align:left;padding:.1em 1em .1em 0"
_BAR = "display:inline-block;height:.7em;background:#8ab4f8;margin-right:.4em"


def png(image: "Image.Image") -> bytes:
    """Return a picture as a PNG file, reduced to LARGEST."""
    if max(image.size) > LARGEST:
        image = image.copy()
        image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def classification(result: Classification) -> str:
    """Return HTML of the classes with their scores, the trust in them, and the maps."""
    confident = any(x.confidence is not None for x in result.predictions)
    heading = ["class", "score", *(["confidence"] if confident else [])]
    lines = [_row("th", map(escape, heading))]
    for each in result.predictions:
        cells = [escape(each.label), _score(each, result.scores)]
        if confident:
            cells.append("" if each.confidence is None else f"{each.confidence:.1%}")
        lines.append(_row("td", cells))
    parts = [
        f"<p><b>{escape(result.model)}</b>, version {escape(result.version)}</p>",
        f"<table>{''.join(lines)}</table>",
    ]
    if result.trust is not None:
        trust = result.trust
        parts.append(
            f"<p>{len(trust.prediction_set)} classes in the set for a coverage of "
            f"{trust.coverage:g}; more unusual than {trust.ood_percentile:.0f}% of the pictures of "
            f"the calibration{'; the model abstains' if trust.abstained else ''}</p>"
        )
    parts += [f"<p>{escape(warning)}</p>" for warning in result.warnings]
    parts += [_figure(each.picture(), f"{each.method} of {each.label}") for each in result.cams]
    parts += [_figure(each.contact_sheet(), each.layer) for each in result.feature_maps]
    return "".join(parts)


def model(about: Model) -> str:
    """Return HTML of a model's input, classes, maps and layers."""
    spec = about.input
    first = ", ".join(about.labels[:_LABELS])
    more = len(about.labels) - _LABELS
    facts: Mapping[str, str] = {
        "classifier": about.classifier,
        "input": f"{spec.height} x {spec.width} x {spec.channels}, {spec.fit}",
        "classes": f"{len(about.labels):,}: {first}{f' and {more:,} more' if more > 0 else ''}",
        "scores": about.scores,
        "maps": ", ".join(each.name for each in about.cam_methods) or "none",
        "layers": ", ".join(each.name for each in about.layers) or "none",
        "variants": ", ".join(each.name for each in about.variants),
        "runs": f"{about.active_variant} on {about.backend}, {about.device}",
        "calibrated for": ", ".join(f"{each:g}" for each in about.coverages) or "no coverage",
    }
    rows = (_row("td", (escape(name), escape(value))) for name, value in facts.items())
    title = f"<p><b>{escape(about.name)}</b>, version {escape(about.version)}</p>"
    return f"{title}<table>{''.join(rows)}</table>"


def _score(prediction: Prediction, scores: str) -> str:
    if scores == "none":
        return f"{prediction.score:.4g}"
    width = f"width:{8 * prediction.score:.2f}em"
    return f'<span style="{_BAR};{width}"></span>{prediction.score:.1%}'


def _row(tag: str, cells: Iterable[str]) -> str:
    inner = (f'<{tag} style="{_CELL}">{cell}</{tag}>' for cell in cells)
    return f"<tr>{''.join(inner)}</tr>"


def _figure(image: "Image.Image", caption: str) -> str:
    data = b64encode(png(image)).decode()
    return (
        '<figure style="display:inline-block;margin:.5em 1em 0 0">'
        f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
