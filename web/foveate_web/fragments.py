"""What the page says of an answer, as HTML. Labels and names are the server's, and escaped."""

from collections.abc import Iterable, Mapping
from html import escape

from foveate_client import Classification, FeatureMap, FoveateError, Heatmap, Prediction, Timing
from foveate_client.commands import _words
from foveate_client.commands._shared import describe, without_maps
from foveate_web import drawing
from foveate_web.asking import Answer
from foveate_web.pictures import Picture

_UNUSUAL = 95
"""The percentile from which on a picture is called unusual."""


def failure(error: FoveateError, address: str) -> str:
    """Return a message that the server does not answer."""
    return (
        f'<p class="failed" role="alert">The server at {escape(address)} does not answer this: '
        f"{_said(error)}</p>"
    )


def complaint(error: FoveateError) -> str:
    """Return a message about what is wrong with a picture."""
    return f'<p class="failed" role="alert">{_said(error)}</p>'


def notice(text: str) -> str:
    """Return a note for the user."""
    return f'<p class="faint">{escape(text)}</p>'


def examples(pictures: Mapping[str, Picture]) -> str:
    """Return a button for each example."""
    buttons = (
        f'<button type="button" data-value="{escape(name)}" aria-label="Example: {escape(name)}">'
        f'<img src="{drawing.data_uri(drawing.thumbnail(picture.data, 96))}" alt=""></button>'
        for name, picture in pictures.items()
    )
    return f'<div class="examples" role="group" aria-label="Examples">{"".join(buttons)}</div>'


def classes(answer: Answer) -> str:
    """Return a button for each of the best classes; that of the class explained is pressed."""
    result = answer.result
    if not result.predictions:
        return notice("the model names no class")
    rows = "".join(_row(x, result.scores, answer.choice.class_id) for x in result.predictions)
    return f'<div class="classes" role="group" aria-label="Best classes">{rows}</div>'


def _row(prediction: Prediction, scores: str, chosen: int | None) -> str:
    share = 0.0 if scores == "none" else min(max(prediction.score, 0.0), 1.0)
    believed = (
        ""
        if prediction.confidence is None
        else f'<span class="faint">confidence {prediction.confidence:.1%}</span>'
    )
    return (
        f'<button type="button" data-value="{prediction.class_id}" '
        f'aria-pressed="{str(prediction.class_id == chosen).lower()}">'
        f'<span class="label">{escape(prediction.label)}</span>'
        f'<span class="score">{_words.score(prediction.score, scores)}</span>'
        f'<span class="bar"><span style="width:{share:.1%}"></span></span>{believed}</button>'
    )


def trust(answer: Answer) -> str:
    """Return the trust in the answer, with a warning where the picture is unusual."""
    result, labels = answer.result, answer.model.labels
    lines = [_warning(text) for text in result.warnings]
    if result.trust is None:
        if not answer.model.coverages:
            lines.append(
                '<p class="faint">The model is not calibrated: how far its answers can be '
                "believed is not known.</p>"
            )
        return "".join(lines)
    said = result.trust
    if said.ood_percentile >= _UNUSUAL:
        lines.append(
            _warning(
                f"This picture is unusual: {said.ood_percentile:.0f} % of the pictures of the "
                "calibration were less so. The classes may mean nothing."
            )
        )
    if said.abstained:
        lines.append(_warning("The model abstains: its policy says not to use this answer."))
    lines += [
        f"<p>{escape(_sentence(line))}</p>" for line in _words.trust_sentences(result, said, labels)
    ]
    return f'<div class="trust">{"".join(lines)}</div>'


def timings(answer: Answer) -> str:
    """Return the model that answered, and the time of each stage."""
    result = answer.result
    kind = f"; {_words.SCORES[result.scores]}" if result.scores in _words.SCORES else ""
    model = f"{escape(result.model)}, version {escape(result.version)}{escape(kind)}"
    took = f"The call took {1000 * answer.seconds:.0f} ms. {_stages(result)}"
    return f'<p><b>{model}</b></p><p class="faint">{took}</p>'


def _stages(result: Classification) -> str:
    timing = result.timing
    if timing is None:
        return ""
    if timing.cached:
        return "The server kept the answer of an earlier, identical request."
    return (
        f"The server took {_ms(timing, 'total')}: {_ms(timing, 'decode')} for the picture, "
        f"{_ms(timing, 'queue')} in the queue, {_ms(timing, 'infer')} in {escape(timing.backend)} "
        f"({escape(timing.variant)} on {escape(timing.device)}, batch of {timing.batch_size})."
    )


def _ms(timing: Timing, stage: str) -> str:
    return f"{1000 * getattr(timing, stage).total_seconds():.1f} ms"


def maps(answer: Answer, picture: Picture) -> str:
    """Return the map of each method over the picture. Raises ImageError."""
    told = without_maps(answer.model)
    if told is not None:
        return notice(f"{told}.")
    figures = (_map(answer, picture, heatmap) for heatmap in answer.heatmaps)
    return f'<div class="figures">{"".join(figures)}</div>'


def _map(answer: Answer, picture: Picture, heatmap: Heatmap) -> str:
    what = heatmap.label + _words.opponent(heatmap, answer.model.labels)
    return _figure(
        drawing.data_uri(drawing.overlay(picture.data, heatmap)),
        alt=f"Where {heatmap.method} finds {what}",
        title=heatmap.method,
        lines=(what, _words.findings(heatmap)),
        file=f"{picture.name}.{answer.model.name}.{heatmap.method}.{heatmap.class_id}.jpg",
    )


def features(picture: Picture, model: str, shown: FeatureMap) -> str:
    """Return one channel of a layer."""
    channel = shown.channels[0]
    rows, columns = shown.array.shape[1:]
    return _figure(
        drawing.data_uri(drawing.channel(shown)),
        alt=f"Channel {channel} of {shown.layer}",
        title=f"{shown.layer}, channel {channel}",
        lines=(f"{rows} x {columns}, values {shown.minimum:.3g} to {shown.maximum:.3g}",),
        file=f"{picture.name}.{model}.{shown.layer}.{channel}.jpg",
    )


def _figure(source: str, *, alt: str, title: str, lines: Iterable[str], file: str) -> str:
    said = "<br>".join(escape(line) for line in lines)
    return (
        f'<figure><img src="{source}" alt="{escape(alt)}"><figcaption><b>{escape(title)}</b> '
        f'<a href="{source}" download="{escape(file)}" aria-label="Download: {escape(alt)}">'
        f"Download</a><br>{said}</figcaption></figure>"
    )


def _warning(text: str) -> str:
    return f'<p class="warning" role="status">{escape(_sentence(text))}</p>'


def _said(error: FoveateError) -> str:
    return escape(_sentence(describe(error)))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
