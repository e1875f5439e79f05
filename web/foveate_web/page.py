"""The layout of the page, and what happens when something on it is chosen."""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from foveate_client import Client, FoveateError, ImageError
from foveate_web import drawing, fragments, link, panel
from foveate_web.asking import Choice, ask, ask_features, models_offered, suited
from foveate_web.panel import Panel
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
            self._lay_out(blocks)
        blocks.queue(max_size=_QUEUED, default_concurrency_limit=_CONCURRENT)
        return blocks

    def _lay_out(self, blocks: gr.Blocks) -> None:
        picture = gr.State("")
        gr.HTML("<h1>Where did it look?</h1>")
        with gr.Row():
            with gr.Column(min_width=300, scale=1):
                with gr.Tabs():
                    with gr.Tab("Picture"):
                        upload = gr.Image(
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
                message = gr.HTML(elem_id="message")
                model = gr.Dropdown([], label="Model", elem_id="model")
                other = gr.Dropdown(
                    [("none", "")], value="", label="Compare with", elem_id="other-model"
                )
                address = gr.Textbox(
                    label="Link to this view",
                    interactive=False,
                    max_lines=1,
                    buttons=["copy"],
                    elem_id="link",
                )
            with gr.Column(min_width=300, scale=3), gr.Row():
                left = panel.lay_out(model, 1, optional=False)
                right = panel.lay_out(other, 2, optional=True)
        controls = [picture, *left.inputs, *right.inputs]
        view = [left.model, right.model, *left.answers, *right.answers]

        def linked(event: Any) -> None:
            # What a gr.State holds does not reach the browser; a text does.
            event.then(_query, controls, address, **_QUIET).then(
                None, address, address, js=_SHOW_LINK, **_QUIET
            )

        fresh = self._fresh(left, right)
        for event in (
            upload.input(self._uploaded, upload, [picture, message], **_LAST),
            canvas.drawn(self._drawn, None, [picture, message], **_LAST),
            examples.choose(self._example, None, [picture, message, upload], **_LAST),
        ):
            linked(event.then(fresh, controls, view, **_LAST))
        for each in (left, right):
            shown = [picture, *each.inputs]
            for event in (
                each.model.input(self._switched(each), shown, each.answers, **_LAST),
                each.against.input(self._chosen(each), shown, each.answers, **_LAST),
                each.methods.input(self._chosen(each), shown, each.answers, **_LAST),
                each.classes.choose(_clicked, None, each.class_id, **_QUIET).then(
                    self._chosen(each), shown, each.answers, **_LAST
                ),
            ):
                linked(event)
            for slider in (each.layer, each.channel):
                linked(
                    slider.input(self._moved(each), shown, [each.channel, each.features], **_QUIET)
                )
        linked(
            blocks.load(
                self._restored(upload, picture, message, left, right),
                None,
                [upload, picture, message, *view],
                **_QUIET,
            )
        )

    def _uploaded(self, payload: Mapping[str, Any] | None) -> tuple[str, str]:
        """Take the file that Gradio has kept of an upload; without one the picture is gone."""
        if payload is None:
            return "", ""
        path = Path(str(payload.get("path", ""))).resolve()
        # Only what was uploaded is read, whatever a caller names.
        if not path.is_relative_to(self._uploads.resolve()) or not path.is_file():
            raise gr.Error("the upload is not there")
        with path.open("rb") as file:
            return self._taken(file.read(MAX_BYTES + 1))

    def _drawn(self, event: gr.EventData) -> tuple[str, str]:
        """Take a drawn digit."""
        try:
            encoded = str(event.picture).removeprefix(_DRAWING_PREFIX)
            return self._taken(drawing.digit(base64.b64decode(encoded, validate=True)))
        except (binascii.Error, ImageError) as error:
            return "", fragments.complaint(ImageError(str(error)))

    def _taken(self, data: bytes) -> tuple[str, str]:
        try:
            return self._pictures.add(data).name, ""
        except ImageError as error:
            return "", fragments.complaint(error)

    def _example(self, event: gr.EventData) -> tuple[str, str, Any]:
        """Take an example."""
        picture = self._pictures.get(str(event.value))
        return picture.name, "", drawing.preview(picture.data)

    def _fresh(self, left: Panel, right: Panel) -> Callable[..., dict[Any, Any]]:
        """Return what shows a new picture: nothing of the last one stays chosen but the models."""

        def show(name: str, *values: Any) -> dict[Any, Any]:
            one, two = (panel.read(part) for part in _halves(values))
            choices = (
                Choice(model=one.model, methods=one.methods),
                Choice(model=two.model, methods=two.methods),
            )
            return self._both(left, right, name, choices, suit=True)

        return show

    def _restored(
        self, upload: Any, picture: Any, message: Any, left: Panel, right: Panel
    ) -> Callable[[gr.Request], dict[Any, Any]]:
        """Return what shows the view that a link names."""

        def show(request: gr.Request) -> dict[Any, Any]:
            name, choices = link.read(dict(request.query_params))
            if not name:
                # A picture that is chosen before this answer has come must not be lost.
                both = self._both(left, right, name, choices, suit=False)
                shown = {part: both[part] for part in (left.model, right.model) if part in both}
                return shown or both
            told, preview = "", None
            try:
                preview = drawing.preview(self._pictures.get(name).data)
            except ImageError as error:
                name, told = "", fragments.complaint(error)
            return {
                upload: preview,
                picture: name,
                message: told,
                **self._both(left, right, name, choices, suit=False),
            }

        return show

    def _both(
        self,
        left: Panel,
        right: Panel,
        name: str,
        choices: tuple[Choice, Choice],
        *,
        suit: bool,
    ) -> dict[Any, Any]:
        """Return the state of the panels, and of the lists of models.

        With `suit`, the first model is replaced by one that suits the picture.
        """
        one, two = choices
        try:
            names = models_offered(self._client)
            if not names:
                return {**left.tell(fragments.notice("The server has no model that is ready."))}
            first = one.model if one.model in names else names[0]
            if suit and name:
                first = suited(self._client, names, first, self._pictures.get(name))
        except FoveateError as error:
            return {**left.tell(self._failure(error)), **right.tell("", visible=False)}
        second = two.model if two.model in names else ""
        return {
            **left.offer(names, first),
            **right.offer(names, second),
            **self._answered(left, name, replace(one, model=first)),
            **self._answered(right, name, replace(two, model=second)),
        }

    def _switched(self, into: Panel) -> Callable[..., dict[Any, Any]]:
        """Return what shows another model's answer, by the same methods where it has them."""

        def show(name: str, *values: Any) -> dict[Any, Any]:
            choice = panel.read(values)
            return self._answered(into, name, Choice(model=choice.model, methods=choice.methods))

        return show

    def _chosen(self, into: Panel) -> Callable[..., dict[Any, Any]]:
        """Return what shows the answer to everything that is chosen."""

        def show(name: str, *values: Any) -> dict[Any, Any]:
            return self._answered(into, name, panel.read(values))

        return show

    def _moved(self, into: Panel) -> Callable[..., dict[Any, Any]]:
        """Return what shows another channel."""

        def show(name: str, *values: Any) -> dict[Any, Any]:
            choice = panel.read(values)
            try:
                picture = self._pictures.get(name)
                layer, features = ask_features(self._client, picture, choice)
            except FoveateError as error:
                return {into.features: self._failure(error)}
            return {
                into.channel: panel.slider(features.channels[0], layer.channels),
                into.features: fragments.features(picture, choice.model, features),
            }

        return show

    def _answered(self, into: Panel, name: str, choice: Choice) -> dict[Any, Any]:
        """Return the state of a panel: the answer, or why there is none."""
        if into.optional and not choice.model:
            return into.tell("", visible=False)
        if not name:
            return into.tell(fragments.notice(panel.HINT))
        try:
            picture = self._pictures.get(name)
            return into.show(ask(self._client, picture, choice), picture)
        except FoveateError as error:
            return into.tell(self._failure(error))

    def _failure(self, error: FoveateError) -> str:
        if isinstance(error, ImageError):
            return fragments.complaint(error)
        return fragments.failure(error, self._address)


def _clicked(event: gr.EventData) -> int | None:
    """Return the class whose button was clicked."""
    value = str(event.value)
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None


def _query(name: str, *values: Any) -> str:
    """Return the query of the link to what is shown."""
    one, two = _halves(values)
    return link.query(name, (panel.read(one), panel.read(two)))


def _halves(values: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    middle = len(values) // 2
    return values[:middle], values[middle:]
