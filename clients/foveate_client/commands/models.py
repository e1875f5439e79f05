"""`foveate models`: lists models, describes one, and changes which ones a server serves."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, cast

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from foveate_client import _plugins
from foveate_client._exceptions import FoveateError
from foveate_client._models import Accuracy, InputSpec, Model, ModelSummary
from foveate_client._repository import RepositoryClient
from foveate_client.commands._options import (
    SOURCE,
    OptionGroup,
    SourceOptions,
    argument,
    option,
    parse,
    parser_of,
)
from foveate_client.commands._shared import (
    UNBROKEN,
    complain,
    describe,
    open_client,
    open_repository_client,
)

CATALOGUES = "foveate.catalogues"
"""The entry point group of lists of classifiers that can be exported."""


_CHANGES = OptionGroup(
    "changes",
    "A server takes them where it was started with --admin. A load that takes longer than "
    "--timeout goes on. Without --version the newest is loaded, the one that serves by "
    "default is read anew, and every one is unloaded.",
    exclusive=True,
)


def _labels(text: str) -> dict[str, str]:
    """Read LABEL=VERSION,...; the type of an argument."""
    labels = {}
    for part in filter(None, text.split(",")):
        label, equals, version = part.partition("=")
        if not (label and equals and version):
            raise argparse.ArgumentTypeError(f"must be LABEL=VERSION,..., not {text!r}")
        labels[label] = version
    return labels


@dataclass(frozen=True, kw_only=True)
class Options(SourceOptions):
    """The options of `foveate models`; `labels` holds versions by label."""

    name: str | None = argument("describe or change this model", metavar="NAME")
    version: str = option("the version that is meant, or its label", metavar="V", default="")
    load: bool = option("load NAME, and wait until it serves", group=_CHANGES)
    reload: bool = option("read what serves anew; --load brings a newer version", group=_CHANGES)
    unload: bool = option("stop serving NAME, after its work", group=_CHANGES)
    labels: dict[str, str] | None = option(
        'the labels of NAME from now on; "" for none',
        group=_CHANGES,
        metavar="LABEL=VERSION,...",
        type=_labels,
    )
    available: bool = option("list the classifiers that can be exported")
    graph: str | None = option(
        "draw the classifier NAME, such as foveate:lenet5, into a file .svg, .png or .pdf: "
        "its blocks, shapes and parameters",
        metavar="FILE",
    )
    json: bool = option("print JSON")


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand and return its exit code."""
    parser = parser_of(
        Options,
        optional=SOURCE,
        prog="foveate models",
        description="List the models of a server or a repository, describe one, or change "
        "which ones a server serves.",
        epilog="example: foveate models resnet18 --repository models",
    )
    options = parse(parser, Options, arguments)
    if options.graph is not None:
        return _graph(parser, options, options.graph)
    if options.available == (options.address is not None or options.repository is not None):
        parser.error("give one of --address, --repository and --available")
    if options.available and options.name:
        parser.error("--available lists every classifier and takes no NAME")
    changes = options.load or options.reload or options.unload or options.labels is not None
    if changes and (options.name is None or options.address is None):
        parser.error("a change of a server's models needs NAME and --address")
    if options.labels is not None and options.version:
        parser.error("--labels names the versions itself and takes no --version")
    try:
        if options.available:
            rows = _available()
            _show(options, rows, _catalogue(rows))
        elif options.name is None:
            with open_client(options) as client:
                models = list(client.models())
            _show(options, [asdict(model) for model in models], _summaries(models))
        elif changes and options.address is not None:
            with open_repository_client(options.address, options) as repository:
                changed = _change(repository, options.name, options)
            _show(options, asdict(changed), _summaries([changed]))
            if options.labels:
                kept = ",".join(f"{options.name}:{x}={v}" for x, v in options.labels.items())
                complain(
                    parser,
                    "the labels hold until the server ends; to keep them, start it with "
                    f"--version-labels {kept}",
                )
        else:
            with open_client(options) as client:
                model = client.model(options.name, options.version)
            _show(options, asdict(model), _details(model))
    except FoveateError as error:
        complain(parser, describe(error))
        return 1
    return 0


def _change(repository: RepositoryClient, name: str, options: Options) -> ModelSummary:
    """Make the change that the options name. Raises FoveateError."""
    if options.labels is not None:
        return repository.set_labels(name, options.labels)
    if options.load:
        return repository.load(name, options.version)
    change = repository.reload if options.reload else repository.unload
    return change(name, options.version)


def _available() -> list[dict[str, Any]]:
    listing = cast(
        "Callable[[], list[dict[str, Any]]]",
        _plugins.load(
            CATALOGUES,
            "available",
            purpose="the list of classifiers",
            requirement="foveate-train",
        ),
    )
    return listing()


def _graph(parser: argparse.ArgumentParser, options: Options, file: str) -> int:
    """Draw a classifier into a file, and return the exit code."""
    if options.name is None or options.available or options.address or options.repository:
        parser.error("--graph draws the classifier NAME, as --available lists it, and no more")
    try:
        draw = cast(
            "Callable[[str, str], int]",
            _plugins.load(
                CATALOGUES,
                "graph",
                purpose="the picture of a network",
                requirement="foveate-train[graphs]",
            ),
        )
    except FoveateError as error:
        complain(parser, describe(error))
        return 1
    return draw(options.name, file)


def _show(options: Options, record: object, view: Group | Table) -> None:
    if options.json:
        print(json.dumps(record, ensure_ascii=False, default=_plain))
    else:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = UNBROKEN
        console.print(view)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _summaries(models: Sequence[ModelSummary]) -> Table:
    table = _columns("model", "version", "state", "")
    for model in models:
        for version in model.versions:
            notes = ["default"] if version.version == model.default_version else []
            notes += [name for name, v in model.version_labels.items() if v == version.version]
            notes += [version.reason] if version.reason else []
            table.add_row(
                Text(model.name, "bold"),
                Text(version.version),
                Text(version.state, "green" if version.state == "ready" else ""),
                Text(", ".join(notes), "dim"),
            )
    return table


def _details(model: Model) -> Group:
    facts = Table.grid(padding=(0, 2))
    spec = model.input
    for name, value in {
        "model": f"{model.name}, version {model.version}, {model.state}",
        "classifier": f"{model.classifier}, {model.parameters:,} parameters, "
        f"{len(model.labels)} classes",
        "input": f"{spec.height} x {spec.width} x {spec.channels}",
        "fit": _fit(spec),
        "scores": model.scores,
        **model.assumptions,
        "coverages": ", ".join(f"{each:g}" for each in model.coverages) or "not calibrated",
        "runs on": f"{model.backend}, {model.device}, {model.active_variant}",
        "exported": f"{model.created:%Y-%m-%d %H:%M} UTC",
    }.items():
        facts.add_row(Text(name, "dim"), Text(value))
    variants = _columns("variant", "size", "logits apart", "same top 1", "accuracy")
    for variant in model.variants:
        variants.add_row(
            Text(variant.name, "bold"),
            f"{variant.size / 2**20:.1f} MiB",
            f"{variant.parity.logits_max_abs:.2g}",
            f"{variant.parity.top1_agreement:.1%}",
            _accuracy(variant.accuracy),
        )
    cams = _columns("cam method", "layer", "cells", "layout")
    for method in model.cam_methods:
        cams.add_row(
            Text(method.name, "bold"),
            Text(method.layer),
            f"{method.height} x {method.width}",
            method.layout,
        )
    tables = [variants, cams] if model.cam_methods else [variants]
    layers = _columns("layer", "feature map", "layout")
    for layer in model.layers:
        layers.add_row(
            Text(layer.name, "bold"),
            f"{layer.channels} x {layer.height} x {layer.width}",
            layer.layout,
        )
    gap = Text()
    return Group(facts, *(part for table in (*tables, layers) for part in (gap, table)))


def _fit(spec: InputSpec) -> str:
    """Describe how a picture of another size becomes the input."""
    if spec.fit == "crop":
        return f"crop: the shorter side to {spec.resize} ({spec.interpolation}), then the centre"
    shorter = min(spec.height, spec.width)
    height, width = (round(side * spec.resize / shorter) for side in (spec.height, spec.width))
    centre = ", then the centre" if spec.resize > shorter else ""
    if spec.fit == "squash":
        return f"squash: both sides to {height} x {width} ({spec.interpolation}){centre}"
    colour = ", ".join(f"{value:.3g}" for value in spec.fill)
    return f"{spec.fit}: into {height} x {width} ({spec.interpolation}){centre}; border ({colour})"


def _accuracy(accuracy: Accuracy | None) -> Text:
    if accuracy is None:
        return Text("not measured", "dim")
    return Text(
        f"top 1 {accuracy.top1:.1%}, top 5 {accuracy.top5:.1%} "
        f"({accuracy.images} images of {accuracy.data})"
    )


def _catalogue(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("name", no_wrap=True)
    for heading in ("parameters", "operations", "input", "top 1", "top 5"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("weights")
    for row in rows:
        size = row["input_size"]
        cells = (
            row["name"],
            f"{row['parameters']:,}",
            f"{row['operations']:,}",
            f"{size} x {size}",
            _percent(row["top1"]),
            _percent(row["top5"]),
            row["weights"] or "",
        )
        table.add_row(*map(Text, cells))
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"


def _columns(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name)
    return table
