"""The layout of the page, and what happens when something on it is chosen."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from foveate_client import Client, FoveateError, ImageError
from foveate_web import drawing, fragments, link, panel
from foveate_web.asking import Choice, ask, ask_features, models_offered, suited
from foveate_web.pictures import MAX_BYTES, Pictures

_CONCURRENT, _QUEUED = 4, 64
"""Events of one kind that are answered at once, and all that wait."""

_UPLOADS_LIVE = 900
"""Seconds after which the file of an upload is deleted."""

_DRAWING_PREFIX = "data:image/png;base64,"

_LAST: dict[str, Any] = {
    # Of changes that come faster than answers, the last one is answered.
    "trigger_mode": "always_last",
    # The values are read with care here, where a choice that is out of date is no error.
    "preprocess": False,
    "api_visibility": "private",
    "show_progress": "minimal",
}
_QUIET = {**_LAST, "show_progress": "hidden"}

THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
"""Gradio's own, with fonts that every machine has."""

CSS = (resources.files("foveate_web") / "page.css").read_text(encoding="utf-8")

_DRAW = (resources.files("foveate_web") / "draw.js").read_text(encoding="utf-8")
_CANVAS = """\
<canvas width="280" height="280" role="img" aria-label="A field to draw a digit in"></canvas>
<button type="button">Clear</button>
"""

_SHOW_LINK = "query => { history.replaceState(null, '', query); return location.href; }"

_Changes = dict[Any, Any]
"""New values of parts of the page."""


class Page:
    """Answers what is chosen on the page, by asking `client`, whose server is at `address`.

    `uploads` is the folder that Gradio keeps its files in.
    """

    def __init__(self, client: Client, address: str, uploads: Path) -> None:
        self._client = client
        self._address = address
        self._uploads = uploads
        self._pictures = Pictures()

    def blocks(self) -> gr.Blocks:
        """Return the page."""
        blocks: gr.Blocks
        with gr.Blocks(
            title="Foveate",
            analytics_enabled=False,
            delete_cache=(_UPLOADS_LIVE // 3, _UPLOADS_LIVE),
        ) as blocks:
            canvas, examples = self._lay_out()
            self._listen(blocks, canvas, examples)
        blocks.queue(max_size=_QUEUED, default_concurrency_limit=_CONCURRENT)
        return blocks

    def _lay_out(self) -> tuple[gr.HTML, gr.HTML]:
        """Lay out the page; return what is drawn on and what the examples stand in."""
        self._picture = gr.State("")
        gr.HTML("<h1>Where did it look?</h1>")
        with gr.Row():
            with gr.Column(min_width=300, scale=1):
                with gr.Tabs():
                    with gr.Tab("Picture"):
                        self._upload = gr.Image(
                            label="Drop, paste, choose, or take a picture",
                            sources=["upload", "clipboard", "webcam"],
                            type="filepath",
                            image_mode=None,
                            height=280,
                            buttons=["fullscreen"],
                            elem_id="picture",
                        )
                    with gr.Tab("Draw a digit"):
                        canvas = gr.HTML(_CANVAS, js_on_load=_DRAW, elem_id="draw")
                examples = gr.HTML(
                    fragments.examples(self._pictures.examples),
                    js_on_load=panel.CHOOSE,
                    elem_id="examples",
                )
                self._message = gr.HTML(elem_id="message")
                model = gr.Dropdown([], label="Model", elem_id="model")
                other = gr.Dropdown(
                    [("none", "")], value="", label="Compare with", elem_id="other-model"
                )
                self._link = gr.Textbox(
                    label="Link to this view",
                    interactive=False,
                    max_lines=1,
                    buttons=["copy"],
                    elem_id="link",
                )
            with gr.Column(min_width=300, scale=3), gr.Row():
                self._panels = (
                    panel.lay_out(model, 1, optional=False),
                    panel.lay_out(other, 2, optional=True),
                )
        return canvas, examples

    def _listen(self, blocks: gr.Blocks, canvas: gr.HTML, examples: gr.HTML) -> None:
        """Have one event answer each choice.

        Of a chain of events Gradio's client may lose one: it is sent while the stream of the
        one before it ends.
        """
        choices = [part for each in self._panels for part in each.inputs]
        answers = [part for each in self._panels for part in (each.model, *each.answers)]
        new = [self._picture, self._message, self._link, *answers]
        self._upload.input(self._uploaded, [self._upload, *choices], new, **_LAST)
        canvas.drawn(self._drawn, choices, new, **_LAST)
        examples.choose(self._example, choices, [self._upload, *new], **_LAST)
        blocks.load(self._restored, None, [self._upload, *new], **_QUIET)
        for index, each in enumerate(self._panels):
            chosen = [self._picture, *choices]
            shown = [self._link, *each.answers]
            each.model.input(self._switched(index), chosen, shown, **_LAST)
            each.classes.choose(self._clicked(index), chosen, shown, **_LAST)
            for part in (each.against, each.methods):
                part.input(self._chosen(index), chosen, shown, **_LAST)
            for slider in (each.layer, each.channel):
                moved = [self._link, each.channel, each.features]
                slider.input(self._moved(index), chosen, moved, **_QUIET)
        # These two run in the browser alone.
        self._link.change(None, self._link, self._link, js=_SHOW_LINK, **_QUIET)
        blocks.load(None, None, self._link, js="() => location.href", **_QUIET)

    def _uploaded(self, payload: Mapping[str, Any] | None, *values: Any) -> _Changes:
        """Take the file that Gradio has kept of an upload; without one the picture is gone."""
        if payload is None:
            return self._fresh("", values)
        path = Path(str(payload.get("path", ""))).resolve()
        # Only what was uploaded is read, whatever a caller names.
        if not path.is_relative_to(self._uploads.resolve()) or not path.is_file():
            raise gr.Error("the upload is not there")
        with path.open("rb") as file:
            return self._taken(file.read(MAX_BYTES + 1), values)

    def _drawn(self, event: gr.EventData, *values: Any) -> _Changes:
        """Take a drawn digit."""
        try:
            encoded = str(event.picture).removeprefix(_DRAWING_PREFIX)
            digit = drawing.digit(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ImageError) as error:
            return self._fresh("", values, ImageError(str(error)))
        return self._taken(digit, values)

    def _taken(self, data: bytes, values: Sequence[Any]) -> _Changes:
        try:
            name = self._pictures.add(data).name
        except ImageError as error:
            return self._fresh("", values, error)
        return self._fresh(name, values)

    def _example(self, event: gr.EventData, *values: Any) -> _Changes:
        """Take an example."""
        picture = self._pictures.get(str(event.value))
        return {self._upload: drawing.preview(picture.data), **self._fresh(picture.name, values)}

    def _fresh(self, name: str, values: Sequence[Any], wrong: ImageError | None = None) -> _Changes:
        """Return what shows a new picture, or what is wrong with it.

        Nothing of the last one stays chosen but the models and methods.
        """
        return {
            self._picture: name,
            self._message: "" if wrong is None else fragments.complaint(wrong),
            **self._both(name, [choice.anew() for choice in _choices(values)], suit=True),
        }

    def _restored(self, request: gr.Request) -> _Changes:
        """Return what shows the view that a link names."""
        name, choices = link.read(dict(request.query_params))
        if not name:
            # A picture that is chosen before this answer has come must not be lost.
            both = self._both(name, list(choices), suit=False)
            shown = {each.model: both[each.model] for each in self._panels if each.model in both}
            return shown or both
        told, preview = "", None
        try:
            preview = drawing.preview(self._pictures.get(name).data)
        except ImageError as error:
            name, told = "", fragments.complaint(error)
        return {
            self._upload: preview,
            self._picture: name,
            self._message: told,
            **self._both(name, list(choices), suit=False),
        }

    def _both(self, name: str, choices: list[Choice], *, suit: bool) -> _Changes:
        """Return the state of the panels, and of the lists of models.

        With `suit`, the first model is replaced by one that suits the picture.
        """
        left, right = self._panels
        one, two = choices
        asked = {self._link: link.query(name, choices)}
        try:
            names = models_offered(self._client)
            if not names:
                told = fragments.notice("The server has no model that is ready.")
                return {**asked, **left.tell(told), **right.tell("", visible=False)}
            first = one.model if one.model in names else names[0]
            if suit and name:
                first = suited(self._client, names, first, self._pictures.get(name))
        except FoveateError as error:
            return {**asked, **left.tell(self._failure(error)), **right.tell("", visible=False)}
        second = two.model if two.model in names else ""
        return {
            **left.offer(names, first),
            **right.offer(names, second),
            **self._shown(name, [replace(one, model=first), replace(two, model=second)], 0, 1),
        }

    def _switched(self, index: int) -> Callable[..., _Changes]:
        """Return what shows another model's answer, by the same methods where it has them."""

        def show(name: str, *values: Any) -> _Changes:
            choices = _choices(values)
            choices[index] = choices[index].anew()
            return self._shown(name, choices, index)

        return show

    def _clicked(self, index: int) -> Callable[..., _Changes]:
        """Return what shows where the class is seen whose button was clicked."""

        def show(event: gr.EventData, name: str, *values: Any) -> _Changes:
            choices = _choices(values)
            choices[index] = replace(choices[index], class_id=_class_id(str(event.value)))
            return self._shown(name, choices, index)

        return show

    def _chosen(self, index: int) -> Callable[..., _Changes]:
        """Return what shows the answer to everything that is chosen."""

        def show(name: str, *values: Any) -> _Changes:
            return self._shown(name, _choices(values), index)

        return show

    def _moved(self, index: int) -> Callable[..., _Changes]:
        """Return what shows another channel."""

        def show(name: str, *values: Any) -> _Changes:
            into, choices = self._panels[index], _choices(values)
            try:
                picture = self._pictures.get(name)
                layer, features = ask_features(self._client, picture, choices[index])
            except FoveateError as error:
                return {into.features: self._failure(error)}
            channel = features.channels[0]
            choices[index] = replace(choices[index], channel=channel)
            return {
                self._link: link.query(name, choices),
                into.channel: panel.slider(channel, layer.channels),
                into.features: fragments.features(picture, choices[index].model, features),
            }

        return show

    def _shown(self, name: str, choices: list[Choice], *indices: int) -> _Changes:
        """Return the state of these panels, each an answer or why there is none, and the link."""
        changes: _Changes = {}
        for index in indices:
            into, choice = self._panels[index], choices[index]
            if into.optional and not choice.model:
                changes |= into.tell("", visible=False)
            elif not name:
                changes |= into.tell(fragments.notice(panel.HINT))
            else:
                try:
                    picture = self._pictures.get(name)
                    answer = ask(self._client, picture, choice)
                    changes |= into.show(answer, picture)
                    choices[index] = answer.choice
                except FoveateError as error:
                    changes |= into.tell(self._failure(error))
        return {self._link: link.query(name, choices), **changes}

    def _failure(self, error: FoveateError) -> str:
        if isinstance(error, ImageError):
            return fragments.complaint(error)
        return fragments.failure(error, self._address)


def _choices(values: Sequence[Any]) -> list[Choice]:
    """Return what the controls of both panels choose."""
    middle = len(values) // 2
    return [panel.read(part) for part in (values[:middle], values[middle:])]


def _class_id(text: str) -> int | None:
    """Return the class of a button that was clicked."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
