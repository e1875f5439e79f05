"""`foveate export` of a classifier in torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from foveate_export.anatomy.ending import probes
from foveate_export.anatomy.layers import default_layers
from foveate_export.anatomy.logits import as_logits
from foveate_export.commands._console import ScoresOptions, answer, place_of
from foveate_export.commands._engines import TargetOptions, read_target
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
from foveate_runtime.console import DONE, Stages, coverages, names, points, positive, warn
from foveate_runtime.evaluation.labelled import open_labelled
from foveate_runtime.options import argument, option, parse
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
class Options(ScoresOptions, TargetOptions):
    """The options of `foveate export` of a classifier in torch; `max_drop` is in points."""

    source: str | None = argument(
        "a checkpoint folder, a classifier's name such as timm:resnet18, or a folder or name "
        "of Hugging Face such as hf-hub:timm/resnet18.a1_in1k"
    )
    module: str | None = option(
        "in place of a source: a function that returns the network, or a Classifier",
        metavar="PACKAGE.MODULE:FUNCTION",
    )
    input_spec: Path | None = option(
        "how a picture becomes the network's input, as JSON; default: as its library says",
        metavar="FILE",
    )
    labels: Path | None = option(
        "the labels, one a line; default: those of the library", metavar="FILE"
    )
    repository: Path | None = option("the folder of models", metavar="DIR")
    name: str | None = option("the model's name in the repository")
    version: int | None = option("default: one above the newest", type=positive, metavar="N")
    weights: str | None = option(
        "the weights, for a classifier's name: a file as training scripts leave it, or a "
        "folder that holds one",
        metavar="FILE|random:SEED",
    )
    argument: tuple[str, ...] = option(
        "an argument of the classifier; may be repeated", metavar="NAME=VALUE"
    )
    logits: str | None = option(
        "which of several tensors that the network returns holds the logits", metavar="NAME"
    )
    layers: tuple[str, ...] | None = option(
        "the feature maps; default: the stage ends", type=names, metavar="A,B"
    )
    cam_layer: str | None = option(
        "the layer whose activations Grad-CAM, HiResCAM and LayerCAM weigh; default: the last",
        metavar="LAYER",
    )
    no_cams: bool = option("leave class activation maps out of the graph")
    list_layers: bool = option("list the layers that --layers and --cam-layer may name")
    variants: tuple[str, ...] = option(
        f"the precisions, the one to serve by default first: {', '.join(VARIANTS)}; "
        f"default: {FP32}",
        type=names,
        default=(FP32,),
        metavar="A,B",
    )
    calibration: str | None = option(
        "pictures that int8 measures its ranges on: a folder, or MNIST's training digits",
        metavar="DIR|mnist",
    )
    max_drop: float = option(
        "how much less than fp32 a variant may recognise of --data, in points of top-1; "
        f"default: {MAX_DROP:g}",
        type=points,
        default=MAX_DROP,
        metavar="POINTS",
    )
    parity_data: Path | None = option(
        "pictures to compare the graph with torch on; default: MNIST's test digits or "
        "scikit-image's photographs",
        metavar="DIR",
    )
    data: str | None = option(
        "labelled pictures, one folder a class; their accuracy goes into the manifest, and "
        "how far the answers can be believed, for which the training must not have seen them",
        metavar="DIR|mnist",
    )
    coverage: tuple[float, ...] = option(
        "how often the prediction sets are to hold the right class, with --data; default: "
        "those of 0.9, 0.95 and 0.99 that the pictures suffice for",
        type=coverages,
        metavar="A,B",
    )
    corrupt: Literal["fail", "skip"] = option(
        "pictures of these folders that cannot be decoded: end the export, or leave them "
        "out and count them; default: fail",
        default="fail",
    )
    tensorrt: bool = option("also build TensorRT engines of the variants that it takes")
    json: bool = option("print the result as JSON")


def main(arguments: Sequence[str]) -> int:
    """Export a classifier and return the exit code."""
    options = parse(Options, arguments, prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    return answer(lambda: _run(options), PROG)


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
