"""`foveate export` of a classifier in torch."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from foveate_export.anatomy.ending import probes
from foveate_export.anatomy.layers import default_layers
from foveate_export.anatomy.logits import as_logits
from foveate_export.commands._console import add_scores_argument, answer, place_of
from foveate_export.commands._engines import TargetOptions, add_target_arguments, read_target
from foveate_export.commands._report import print_exported, print_layers
from foveate_export.commands._training import training_errors
from foveate_export.default_pictures import for_classifier
from foveate_export.errors import UsageError
from foveate_export.exporter import check_variants, check_weights, examine, export
from foveate_export.input_files import repeated
from foveate_export.pictures import from_folder
from foveate_export.publish.variants import FP32, VARIANTS
from foveate_export.publish.variants.acceptance import MAX_DROP
from foveate_export.publish.variants.calibration import open_calibration
from foveate_export.sources import Source, load_function, load_source
from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.console import (
    DONE,
    Stages,
    coverages,
    names,
    parse,
    points,
    positive,
    warn,
)
from foveate_runtime.evaluation.labelled import open_labelled
from foveate_train.classifier import Classifier

PROG = "foveate export"

DESCRIPTION = """\
Exports a classifier to a bundle: one ONNX graph that takes pixels and returns
logits, class activation maps and feature maps, compared with torch before it
is published. A graph that differs is refused."""

EPILOG = (
    "An ONNX file in place of SOURCE has options of its own: foveate export FILE.onnx --help. "
    "example: foveate export timm:resnet18 --repository models --name resnet18"
)


@dataclass(frozen=True, kw_only=True)
class Options(TargetOptions):
    """The options of `foveate export` of a classifier in torch; `max_drop` is in points."""

    source: str | None
    module: str | None
    input_spec: Path | None
    labels: Path | None
    repository: Path | None
    name: str | None
    version: int | None
    weights: str | None
    argument: tuple[str, ...]
    logits: str | None
    scores: Scores | None
    layers: tuple[str, ...] | None
    cam_layer: str | None
    no_cams: bool
    list_layers: bool
    variants: tuple[str, ...]
    calibration: str | None
    max_drop: float
    parity_data: Path | None
    data: str | None
    coverage: tuple[float, ...]
    corrupt: Literal["fail", "skip"]
    tensorrt: bool
    json: bool


def main(arguments: Sequence[str]) -> int:
    """Export a classifier and return the exit code."""
    options = parse(_parser(), Options, arguments)
    return answer(lambda: _run(options), PROG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "source",
        nargs="?",
        help="a checkpoint folder, a classifier's name such as timm:resnet18, or a folder or name "
        "of Hugging Face such as hf-hub:timm/resnet18.a1_in1k",
    )
    parser.add_argument(
        "--module",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="in place of a source: a function that returns the network, or a Classifier",
    )
    parser.add_argument(
        "--input-spec",
        type=Path,
        metavar="FILE",
        help="how a picture becomes the network's input, as JSON; default: as its library says",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="the labels, one a line; default: those of the library",
    )
    parser.add_argument("--repository", type=Path, metavar="DIR", help="the folder of models")
    parser.add_argument("--name", help="the model's name in the repository")
    parser.add_argument(
        "--version", type=positive, metavar="N", help="default: one above the newest"
    )
    parser.add_argument(
        "--weights",
        metavar="FILE|random:SEED",
        help="the weights, for a classifier's name: a file as training scripts leave it, or a "
        "folder that holds one",
    )
    parser.add_argument(
        "--argument",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the classifier; may be repeated",
    )
    parser.add_argument(
        "--logits",
        metavar="NAME",
        help="which of several tensors that the network returns holds the logits",
    )
    add_scores_argument(parser)
    parser.add_argument(
        "--layers", type=names, metavar="A,B", help="the feature maps; default: the stage ends"
    )
    parser.add_argument(
        "--cam-layer",
        metavar="LAYER",
        help="the layer whose activations Grad-CAM, HiResCAM and LayerCAM weigh; default: the last",
    )
    parser.add_argument(
        "--no-cams", action="store_true", help="leave class activation maps out of the graph"
    )
    parser.add_argument(
        "--list-layers",
        action="store_true",
        help="list the layers that --layers and --cam-layer may name",
    )
    parser.add_argument(
        "--variants",
        type=names,
        default=(FP32,),
        metavar="A,B",
        help=f"the precisions, the one to serve by default first: {', '.join(VARIANTS)}; "
        f"default: {FP32}",
    )
    parser.add_argument(
        "--calibration",
        metavar="DIR|mnist",
        help="pictures that int8 measures its ranges on: a folder, or MNIST's training digits",
    )
    parser.add_argument(
        "--max-drop",
        type=points,
        default=MAX_DROP,
        metavar="POINTS",
        help="how much less than fp32 a variant may recognise of --data, in points of top-1; "
        f"default: {MAX_DROP:g}",
    )
    parser.add_argument(
        "--parity-data",
        type=Path,
        metavar="DIR",
        help="pictures to compare the graph with torch on; default: MNIST's test digits or "
        "scikit-image's photographs",
    )
    parser.add_argument(
        "--data",
        metavar="DIR|mnist",
        help="labelled pictures, one folder a class; their accuracy goes into the manifest, and "
        "how far the answers can be believed, for which the training must not have seen them",
    )
    parser.add_argument(
        "--coverage",
        type=coverages,
        default=(),
        metavar="A,B",
        help="how often the prediction sets are to hold the right class, with --data; default: "
        "those of 0.9, 0.95 and 0.99 that the pictures suffice for",
    )
    parser.add_argument(
        "--corrupt",
        choices=["fail", "skip"],
        default="fail",
        help="pictures of these folders that cannot be decoded: end the export, or leave them "
        "out and count them; default: fail",
    )
    parser.add_argument(
        "--tensorrt",
        action="store_true",
        help="also build TensorRT engines of the variants that it takes",
    )
    add_target_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


@training_errors()
def _run(options: Options) -> int:
    place = None if options.list_layers else place_of(options.repository, options.name)
    if place is not None:
        check_variants(options.variants, calibrated=options.calibration is not None)
    if options.no_cams and options.cam_layer is not None:
        raise UsageError("--cam-layer chooses the maps that --no-cams leaves out")
    if options.coverage and not options.data:
        raise UsageError("--coverage needs --data, labelled pictures to calibrate on")
    if not options.tensorrt and (
        options.flavour or options.compute_capability or options.timing_cache
    ):
        raise UsageError("--flavour, --compute-capability and --timing-cache go with --tensorrt")
    target = read_target(options) if options.tensorrt else None
    stages = Stages(Console(stderr=True))
    with stages(f"loading {options.module or options.source}"):
        source = _load(options)
    check_weights(source.classifier)
    if options.labels:
        warn(PROG, repeated(source.classifier.labels))
    corrupt: list[str] | None = [] if options.corrupt == "skip" else None
    with stages("reading pictures"):
        classifier = source.classifier
        pictures = (
            from_folder(options.parity_data, classifier.input, corrupt=corrupt)
            if options.parity_data
            else for_classifier(classifier)
        )
        calibration = (
            open_calibration(options.calibration, classifier, corrupt)
            if options.calibration
            else None
        )
    with stages("finding what its outputs are"):
        spec = classifier.input
        classifier, ending = as_logits(
            classifier, probes(pictures, spec), options.scores, output=options.logits
        )
    if place is None:
        return _list_layers(classifier, as_json=options.json)
    # One output becomes two classes, and only then a label means its class.
    labelled = open_labelled(options.data, classifier.labels) if options.data else None
    exported = export(
        classifier,
        repository=place[0],
        name=place[1],
        version=options.version,
        layers=options.layers,
        cam_layer=options.cam_layer,
        cams=not options.no_cams,
        pictures=pictures,
        ending=ending,
        variants=options.variants,
        calibration=calibration,
        max_drop=options.max_drop,
        target=target,
        labelled=labelled,
        coverages=options.coverage,
        metadata=source.metadata,
        corrupt=corrupt,
        stage=stages,
    )
    if corrupt:
        different = dict.fromkeys(corrupt)
        warn(PROG, f"{len(different)} corrupt pictures left out, the first {corrupt[0]}")
    print_exported(exported, original="torch", as_json=options.json)
    return DONE


def _load(options: Options) -> Source:
    if options.source is not None and options.module is None:
        return load_source(
            options.source,
            options.weights,
            options.argument,
            input_spec=options.input_spec,
            labels=options.labels,
        )
    if options.source is not None or options.module is None:
        raise UsageError("give a source or --module, and not both")
    if options.weights is not None or options.argument:
        raise UsageError("--weights and --argument are for a classifier's name")
    return load_function(options.module, input_spec=options.input_spec, labels=options.labels)


def _list_layers(classifier: Classifier, *, as_json: bool) -> int:
    anatomy = examine(classifier)
    default = default_layers(classifier.module, anatomy.layers)
    print_layers(anatomy.layers, default, anatomy.left_out, as_json=as_json)
    return DONE
