"""`foveate export FILE.onnx`: a bundle of a classifier that is ONNX already, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console

from foveate_export.commands._console import TRAINING, ScoresOptions, answer, place_of
from foveate_export.commands._report import print_exported, print_layers
from foveate_export.errors import UsageError
from foveate_export.existing import Existing, export_existing, open_existing
from foveate_export.input_files import read_input_spec, read_labels, repeated
from foveate_export.pictures import Pictures, from_folder, shipped
from foveate_export.progress import Stage
from foveate_export.publish.bundle import NO_CAMS, Exported
from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.console import DONE, Stages, names, positive, warn
from foveate_runtime.options import argument, option, parse

PROG = "foveate export"

DESCRIPTION = """\
Exports a classifier that is an ONNX file already to a bundle. The graph is
edited: it takes pixels and any number of pictures, and returns logits, feature
maps, and class activation maps where it ends in average pooling and a linear
layer. Every output is compared with the file's own before the bundle is
published; a graph that differs is refused. Needs no torch."""
EPILOG = (
    "example: foveate export net.onnx --input-spec input.json --labels labels.txt "
    "--repository models --name net"
)


@dataclass(frozen=True, kw_only=True)
class Options(ScoresOptions):
    """The options of `foveate export FILE.onnx`."""

    source: Path = argument("the classifier, an ONNX file", metavar="FILE.onnx")
    input_spec: Path = option("how a picture becomes the network's input, as JSON", metavar="FILE")
    labels: Path | None = option("the labels, one a line", metavar="FILE")
    repository: Path | None = option("the folder of models", metavar="DIR")
    name: str | None = option("the model's name in the repository")
    version: int | None = option("default: one above the newest", type=positive, metavar="N")
    layout: Literal["nchw", "nhwc"] | None = option(
        "the axes of the file's input; default: those that the input specification fits"
    )
    bgr: bool = option("the file takes blue, green, red and not red, green, blue")
    logits: str | None = option(
        "the output to classify by; default: the only one", metavar="OUTPUT"
    )
    layers: tuple[str, ...] | None = option(
        "the nodes to return feature maps of; default: the last one of each size",
        type=names,
        metavar="A,B",
    )
    no_cams: bool = option("leave class activation maps out of the graph")
    list_layers: bool = option("list the nodes that --layers may name")
    parity_data: Path | None = option(
        "pictures to compare the graph with the file on; default: scikit-image's photographs",
        metavar="DIR",
    )
    json: bool = option("print the result as JSON")


class Where(NamedTuple):
    """Where a bundle goes, and with which layers."""

    repository: Path
    name: str
    version: int | None
    layers: Sequence[str] | None


def differentiated(
    source: Existing,
    labels: Sequence[str],
    pictures: Pictures,
    *,
    scores: Scores | None,
    where: Where,
    stage: Stage,
) -> tuple[Exported | None, str]:
    """Export a file whose head is differentiated in torch; or say why it is not."""
    try:
        module = import_module("foveate_export.commands._differentiated")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAINING:
            raise
        return None, 'other heads need PyTorch: pip install "foveate-export[torch]"'
    found: tuple[Exported | None, str] = module.export_differentiated(
        source, labels, pictures, scores=scores, where=where, stage=stage
    )
    return found


def main(arguments: Sequence[str]) -> int:
    """Export an ONNX file and return the exit code."""
    options = parse(Options, arguments, prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    return answer(lambda: _run(options), PROG)


def _run(options: Options) -> int:
    stages = Stages(Console(stderr=True))
    spec = read_input_spec(options.input_spec)
    place = None if options.list_layers else place_of(options.repository, options.name)
    labels = read_labels(options.labels) if options.labels else None
    warn(PROG, repeated(labels or ()))
    with stages("reading pictures"):
        pictures = from_folder(options.parity_data, spec) if options.parity_data else shipped(spec)
    with stages(f"reading {options.source}"):
        source = open_existing(
            options.source,
            spec,
            layout=options.layout,
            bgr=options.bgr,
            logits=options.logits,
            scores=options.scores,
            pictures=pictures,
        )
    if place is None:
        print_layers(source.layers, source.default_layers, source.left_out, as_json=options.json)
        return DONE
    if labels is None:
        labels = source.labels
        source.assumptions["labels"] = "those that the ZipMap of the file names"
    if not labels:
        raise UsageError("--labels names the classes, which this ONNX file does not")
    where = Where(*place, options.version, options.layers)
    exported = None
    if options.no_cams:
        source = replace(source, head=None, note=NO_CAMS)
    elif source.head is None:
        exported, why = differentiated(
            source, labels, pictures, scores=options.scores, where=where, stage=stages
        )
        source = replace(source, note=f"{source.note}; {why}")
    if exported is None:
        exported = export_existing(
            source, labels, pictures=pictures, stage=stages, **where._asdict()
        )
    original = "torch" if "network" in exported.manifest.assumptions else options.source.name
    print_exported(exported, original=original, as_json=options.json)
    return DONE
