"""What the page asks the server, and what it gets."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from foveate_client import (
    Cam,
    Classification,
    ClassifyOptions,
    Client,
    FeatureMap,
    Features,
    Heatmap,
    Layer,
    Model,
)
from foveate_web.pictures import Picture

MAX_MODELS = 256
"""The most models that are offered."""

_ANSWERS = frozenset({"ready", "on_demand"})
"""The states of a version that answers requests."""

_TRIED = 8
"""How many models are looked at for one that a picture suits: each may be loaded for it."""

_BEST = 5
"""How many classes are shown, of a model that has so many."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is chosen of one model.

    `class_id` is the class that is explained, None the best one; `against` the class that
    it is explained against, None for none; `layer` counts the model's layers from 0. What
    the model does not have is replaced by its first method or its last layer.
    """

    model: str = ""
    class_id: int | None = None
    against: int | None = None
    methods: tuple[str, ...] = ()
    layer: int = 0
    channel: int = 0

    def anew(self) -> "Choice":
        """Return the same methods of the same model, with nothing else chosen."""
        return Choice(model=self.model, methods=self.methods)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a model answers. `choice` is complete; `seconds` is how long the first call took."""

    choice: Choice
    model: Model
    result: Classification
    heatmaps: tuple[Heatmap, ...]
    features: FeatureMap | None
    seconds: float


def models_offered(client: Client) -> list[str]:
    """Return the names of the models that answer requests. Raises CallError."""
    offered = (
        summary.name
        for summary in client.models()
        if any(version.state in _ANSWERS for version in summary.versions)
    )
    return list(islice(offered, MAX_MODELS))


def suited(client: Client, names: Sequence[str], current: str, picture: Picture) -> str:
    """Return the model to ask about a new picture: `current`, unless another one suits it.

    A grey picture of just the input's size selects a model of grey pictures, and a
    picture with colours leaves such a model. Raises CallError.
    """

    def suits(model: Model) -> bool:
        grey = model.input.channels == 1
        if not picture.grey:
            return not grey
        return grey and (model.input.width, model.input.height) == (picture.width, picture.height)

    others = [name for name in names if name != current][:_TRIED]
    first = current or names[0]
    for name in (first, *others):
        if suits(client.model(name)):
            return name
    return first


def ask(client: Client, picture: Picture, choice: Choice) -> Answer:
    """Classify a picture, with a map of each method and one channel of a layer.

    Raises FoveateError.
    """
    model = client.model(choice.model)
    wanted = completed(choice, model)
    maps = [_cam(wanted, method) for method in wanted.methods]
    options = ClassifyOptions(
        model=model.name,
        version=model.version,
        top_k=min(_BEST, len(model.labels)),
        trust=bool(model.coverages),
        timing=True,
        feature_maps=_features(wanted, model),
    )
    if maps:
        options["cam"] = maps[0]
    began = time.perf_counter()
    first = client.classify(picture.data, **options)
    seconds = time.perf_counter() - began
    others = [
        client.classify(picture.data, model=model.name, version=model.version, top_k=1, cam=cam)
        for cam in maps[1:]
    ]
    best = first.predictions[0].class_id if first.predictions else None
    return Answer(
        choice=replace(wanted, class_id=best if wanted.class_id is None else wanted.class_id),
        model=model,
        result=first,
        heatmaps=tuple(cam for result in (first, *others) for cam in result.cams),
        features=first.feature_maps[0] if first.feature_maps else None,
        seconds=seconds,
    )


def ask_features(client: Client, picture: Picture, choice: Choice) -> tuple[Layer, FeatureMap]:
    """Return a layer and one channel of it. Raises FoveateError; the model has layers."""
    model = client.model(choice.model)
    wanted = completed(choice, model)
    result = client.classify(
        picture.data,
        model=model.name,
        version=model.version,
        top_k=1,
        feature_maps=_features(wanted, model),
    )
    return model.layers[wanted.layer], result.feature_maps[0]


def completed(choice: Choice, model: Model) -> Choice:
    """Return `choice` without what `model` does not have, and with what is missing."""
    offered = [method.name for method in model.cam_methods]
    methods = tuple(name for name in offered if name in choice.methods) or tuple(offered[:1])
    class_id = _within(choice.class_id, model)
    against = None if class_id is None else _within(choice.against, model)
    layer = min(max(choice.layer, 0), max(len(model.layers) - 1, 0))
    channels = model.layers[layer].channels if model.layers else 1
    return Choice(
        model=model.name,
        class_id=class_id,
        against=None if against == class_id else against,
        methods=methods,
        layer=layer,
        channel=min(max(choice.channel, 0), channels - 1),
    )


def _features(choice: Choice, model: Model) -> tuple[Features, ...]:
    if not model.layers:
        return ()
    return (Features(model.layers[choice.layer].name, (choice.channel,)),)


def _within(class_id: int | None, model: Model) -> int | None:
    return class_id if class_id is not None and 0 <= class_id < len(model.labels) else None


def _cam(choice: Choice, method: str) -> Cam:
    classes = () if choice.class_id is None else (choice.class_id,)
    return Cam(method=method, class_ids=classes, against=choice.against)
