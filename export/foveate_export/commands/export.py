"""`foveate export`: from a classifier to a bundle that a server can load."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from foveate_export.commands._console import DONE, Stages, answer, names, points, positive
from foveate_export.commands._engines import add_target_arguments, read_target
from foveate_export.errors import UsageError
from foveate_export.exporter import Exported, check_name, check_variants, examine, export
from foveate_export.labelled import open_labelled
from foveate_export.layers import default_layers
from foveate_export.pictures import for_classifier, from_folder
from foveate_export.sources import Source, load_function, load_source
from foveate_export.variants import FP32, VARIANTS
from foveate_export.variants.acceptance import MAX_DROP
from foveate_export.variants.calibration import open_calibration
from foveate_serve.backends.tensorrt.sidecar import ENGINE_SUFFIX
from foveate_serve.bundle.manifest import Accuracy, Parity, Quantisation

PROG = "foveate export"

DESCRIPTION = """\
Exports a classifier to a bundle: one ONNX graph that takes pixels and returns
logits, class activation maps and feature maps, compared with torch before it
is published. A graph that differs is refused."""


def main(arguments: Sequence[str]) -> int:
    """Run `foveate export` and return its exit code."""
    options = _parser().parse_args(arguments)
    return answer(lambda: _run(options), PROG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description=DESCRIPTION)
    parser.add_argument(
        "source",
        nargs="?",
        help="a checkpoint folder, or a classifier's name such as timm:resnet18",
    )
    parser.add_argument(
        "--module",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="in place of a source: a function that returns the network, or a Classifier",
    )
    parser.add_argument(
        "--input-spec", type=Path, metavar="FILE", help="for --module: the input, as JSON"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="for --module: the labels, one a line"
    )
    parser.add_argument("--repository", type=Path, metavar="DIR", help="the folder of models")
    parser.add_argument("--name", help="the model's name in the repository")
    parser.add_argument(
        "--version", type=positive, metavar="N", help="default: one above the newest"
    )
    parser.add_argument(
        "--weights", metavar="FILE|random:SEED", help="the weights, for a classifier's name"
    )
    parser.add_argument(
        "--argument",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the classifier; may be repeated",
    )
    parser.add_argument(
        "--layers", type=names, metavar="A,B", help="the feature maps; default: the stage ends"
    )
    parser.add_argument(
        "--cam-layer",
        metavar="LAYER",
        help="the layer whose activations Grad-CAM, HiResCAM and LayerCAM weigh; default: the last",
    )
    parser.add_argument(
        "--list-layers",
        action="store_true",
        help="list the layers that --layers and --cam-layer may name",
    )
    parser.add_argument(
        "--variants",
        type=names,
        default=[FP32],
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
        help="labelled pictures, one folder a class; their accuracy goes into the manifest",
    )
    parser.add_argument(
        "--tensorrt",
        action="store_true",
        help="also build TensorRT engines of the variants that it takes",
    )
    add_target_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _run(options: argparse.Namespace) -> int:
    if not options.list_layers:
        if options.repository is None or options.name is None:
            raise UsageError("--repository and --name say where the bundle goes")
        check_name(options.name)
        check_variants(options.variants, calibrated=options.calibration is not None)
    if not options.tensorrt and (
        options.flavour or options.compute_capability or options.timing_cache
    ):
        raise UsageError("--flavour, --compute-capability and --timing-cache go with --tensorrt")
    target = read_target(options) if options.tensorrt else None
    stages = Stages(Console(stderr=True))
    with stages(f"loading {options.module or options.source}"):
        source = _load(options)
    if options.list_layers:
        return _list_layers(source, as_json=options.json)
    classifier = source.classifier
    with stages("reading pictures"):
        calibration = (
            open_calibration(options.calibration, classifier) if options.calibration else None
        )
        labelled = open_labelled(options.data, classifier.labels) if options.data else None
        pictures = (
            from_folder(options.parity_data, classifier.input)
            if options.parity_data
            else for_classifier(classifier)
        )
    exported = export(
        classifier,
        repository=options.repository,
        name=options.name,
        version=options.version,
        layers=options.layers,
        cam_layer=options.cam_layer,
        pictures=pictures,
        variants=options.variants,
        calibration=calibration,
        max_drop=options.max_drop,
        target=target,
        labelled=labelled,
        metadata=source.metadata,
        stage=stages,
    )
    if options.json:
        print(json.dumps(_as_json(exported), indent=2))
    else:
        print(_as_text(exported))
    return DONE


def _load(options: argparse.Namespace) -> Source:
    if (options.source is None) == (options.module is None):
        raise UsageError("give a source or --module, and not both")
    if options.module is None:
        if options.input_spec is not None or options.labels is not None:
            raise UsageError("--input-spec and --labels go with --module")
        return load_source(options.source, options.weights, options.argument)
    if options.weights is not None or options.argument:
        raise UsageError("--weights and --argument are for a classifier's name")
    return load_function(options.module, input_spec=options.input_spec, labels=options.labels)


def _list_layers(source: Source, *, as_json: bool) -> int:
    anatomy = examine(source.classifier)
    default = default_layers(source.classifier.module, anatomy.layers)
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "layer": layer.path,
                        "type": layer.kind,
                        "channels": layer.channels,
                        "height": layer.height,
                        "width": layer.width,
                        "default": layer in default,
                    }
                    for layer in anatomy.layers
                ],
                indent=2,
            )
        )
        return DONE
    table = Table("layer", "type", "channels", "height", "width", "default", box=None)
    for layer in anatomy.layers:
        mark = "*" if layer in default else ""
        numbers = (str(n) for n in (layer.channels, layer.height, layer.width))
        table.add_row(layer.path, layer.kind, *numbers, mark)
    Console(file=sys.stdout).print(table)
    return DONE


def _as_json(exported: Exported) -> dict[str, object]:
    manifest = exported.manifest
    return {
        "path": str(exported.path),
        "name": manifest.name,
        "version": manifest.version,
        "bytes": exported.size,
        "note": exported.note,
        "variants": [variant.model_dump(mode="json") for variant in manifest.variants],
    }


def _as_text(exported: Exported) -> str:
    manifest = exported.manifest
    lines = [f"{exported.path}: {exported.size / 1e6:.1f} MB"]
    for variant in manifest.variants:
        lines.append(f"{variant.name}: {manifest.files[variant.file].size / 1e6:.1f} MB")
        if variant.quantisation:
            lines.append("  " + _quantisation_line(variant.quantisation))
        lines.append("  " + _parity_line(variant.parity))
        if variant.accuracy:
            lines.append("  " + _accuracy_line(variant.accuracy))
    lines += [
        f"{name}: {entry.size / 1e6:.1f} MB"
        for name, entry in manifest.files.items()
        if name.endswith(ENGINE_SUFFIX)
    ]
    if exported.note:
        lines.append(exported.note)
    return "\n".join(lines)


def _parity_line(parity: Parity) -> str:
    worst = [f"logits {parity.logits_max_abs:.1e} (absolute)"]
    worst += [f"cam.{method} {error:.1e}" for method, error in parity.cams.items()]
    if parity.features:
        worst.append(f"feature maps {max(parity.features.values()):.1e}")
    return (
        f"largest difference from torch on {parity.images} pictures ({parity.data}): "
        + ", ".join(worst)
        + f"; top-1 agrees on {parity.top1_agreement:.1%}"
    )


def _quantisation_line(quantisation: Quantisation) -> str:
    left = ", ".join(quantisation.float_layers) or "none"
    return (
        f"{quantisation.scheme}, calibrated on {quantisation.images} pictures "
        f"({quantisation.data}): top-1 agrees with fp32 on {quantisation.agreement:.1%} of them, "
        f"the logits' noise is {quantisation.sqnr:.1f} dB below them; layers left in float: {left}"
    )


def _accuracy_line(accuracy: Accuracy) -> str:
    return (
        f"accuracy on {accuracy.images} pictures ({accuracy.data}): "
        f"top-1 {accuracy.top1:.2%}, top-5 {accuracy.top5:.2%}"
    )
