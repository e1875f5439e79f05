"""The part of the page that shows one model's answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import gradio as gr

from foveate_web import fragments
from foveate_web.asking import Answer, Choice
from foveate_web.pictures import Picture

CHOOSE = (resources.files("foveate_web") / "choose.js").read_text(encoding="utf-8")
"""Has the buttons of an element raise the event `choose`, with their value."""

HINT = "Choose a picture, draw a digit, or click on an example."
"""What stands in the place of an answer before there is a picture."""

_NONE = -1
"""The choice of no class, in a list of classes."""


@dataclass(frozen=True)
class Panel:
    """The parts of the page that show one model's answer; `optional` where there may be none."""

    optional: bool
    model: gr.Dropdown
    class_id: gr.State
    column: gr.Column
    timings: gr.HTML
    classes: gr.HTML
    trust: gr.HTML
    against: gr.Dropdown
    methods: gr.CheckboxGroup
    maps: gr.HTML
    layer: gr.Slider
    channel: gr.Slider
    features: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        """What `read` reads."""
        return [self.model, self.class_id, self.against, self.methods, self.layer, self.channel]

    @property
    def answers(self) -> list[Any]:
        """What `show` and `told` change."""
        return [
            *(self.class_id, self.column, self.timings, self.classes, self.trust, self.against),
            *(self.methods, self.maps, self.layer, self.channel, self.features),
        ]

    def offer(self, names: Sequence[str], model: str) -> dict[Any, Any]:
        """Offer these models, and choose one."""
        none = [("none", "")] if self.optional else []
        choices = [*none, *((name, name) for name in names)]
        return {self.model: gr.update(choices=choices, value=model or choices[0][1])}

    def show(self, answer: Answer, picture: Picture) -> dict[Any, Any]:
        """Show an answer. Raises ImageError."""
        choice, model = answer.choice, answer.model
        others = [x for x in answer.result.predictions if x.class_id != choice.class_id]
        if choice.against is not None and all(x.class_id != choice.against for x in others):
            listed = [(model.labels[choice.against], choice.against)]
        else:
            listed = []
        features = answer.features
        return {
            self.column: gr.update(visible=True),
            self.class_id: choice.class_id,
            self.timings: fragments.timings(answer),
            self.classes: fragments.classes(answer),
            self.trust: fragments.trust(answer),
            self.against: gr.update(
                choices=[("nothing", _NONE), *((x.label, x.class_id) for x in others), *listed],
                value=_NONE if choice.against is None else choice.against,
                visible=bool(model.cam_methods),
            ),
            self.methods: gr.update(
                choices=[method.name for method in model.cam_methods],
                value=list(choice.methods),
                visible=len(model.cam_methods) > 1,
            ),
            self.maps: fragments.maps(answer, picture),
            self.layer: slider(choice.layer, len(model.layers)),
            self.channel: slider(
                choice.channel, model.layers[choice.layer].channels if model.layers else 0
            ),
            self.features: (
                fragments.notice("The model offers no feature maps.")
                if features is None
                else fragments.features(picture, model.name, features)
            ),
        }

    def tell(self, text: str, *, visible: bool = True) -> dict[Any, Any]:
        """Show a text in the place of an answer."""
        hidden = gr.update(visible=False)
        return {
            self.column: gr.update(visible=visible),
            self.class_id: None,
            self.timings: text,
            **dict.fromkeys((self.classes, self.trust, self.maps, self.features), ""),
            **dict.fromkeys((self.against, self.methods, self.layer, self.channel), hidden),
        }


def slider(value: int, count: int) -> dict[str, Any]:
    """Return the state of a slider over so many things; one is nothing to choose from."""
    return gr.update(value=value, maximum=max(count - 1, 1), visible=count > 1)


def lay_out(model: gr.Dropdown, number: int, *, optional: bool) -> Panel:
    """Lay out a panel; `number` ends the names of its elements in the page."""
    with gr.Column(min_width=300, visible=not optional) as column:
        timings = gr.HTML(fragments.notice(HINT), elem_id=f"timings-{number}")
        with gr.Row():
            with gr.Column(min_width=260):
                classes = gr.HTML(js_on_load=CHOOSE, elem_id=f"classes-{number}")
                trust = gr.HTML(elem_id=f"trust-{number}")
                against = gr.Dropdown(
                    [("nothing", _NONE)],
                    value=_NONE,
                    label="This and not that: against",
                    visible=False,
                    elem_id=f"against-{number}",
                )
                methods = gr.CheckboxGroup(
                    [], label="Methods, side by side", visible=False, elem_id=f"methods-{number}"
                )
            with gr.Column(min_width=260):
                maps = gr.HTML(elem_id=f"maps-{number}")
        with gr.Row():
            with gr.Column(min_width=260):
                layer = gr.Slider(
                    0, 1, step=1, label="Layer", visible=False, elem_id=f"layer-{number}"
                )
                channel = gr.Slider(
                    0, 1, step=1, label="Channel", visible=False, elem_id=f"channel-{number}"
                )
            with gr.Column(min_width=260):
                features = gr.HTML(elem_id=f"features-{number}")
    return Panel(
        optional=optional,
        model=model,
        class_id=gr.State(None),
        column=column,
        timings=timings,
        classes=classes,
        trust=trust,
        against=against,
        methods=methods,
        maps=maps,
        layer=layer,
        channel=channel,
        features=features,
    )


def read(values: Sequence[Any]) -> Choice:
    """Return what the values of `Panel.inputs` choose, whatever a caller has sent."""
    model, class_id, against, methods, layer, channel = values
    return Choice(
        model=model if isinstance(model, str) else "",
        class_id=_number(class_id),
        against=_number(against),
        methods=tuple(map(str, methods)) if isinstance(methods, list) else (),
        layer=_number(layer) or 0,
        channel=_number(channel) or 0,
    )


def _number(value: object) -> int | None:
    """Return a number that a browser sent, None for none and for the choice of none."""
    if isinstance(value, int | float) and 0 <= value < 2**31:
        return int(value)
    return None
