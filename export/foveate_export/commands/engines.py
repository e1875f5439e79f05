"""`foveate engines`: TensorRT engines for a bundle that is published already."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from foveate_export.commands._console import answer
from foveate_export.commands._engines import (
    TargetOptions,
    engine_line,
    read_target,
)
from foveate_export.publish.tensorrt.engines import add_engines
from foveate_runtime.console import DONE, Stages, names
from foveate_runtime.options import BundleOptions, option, parse

PROG = "foveate engines"

DESCRIPTION = """\
Builds engines of TensorRT or TensorRT-RTX from the graphs of a bundle and adds
them to it: for each variant one that classifies, and one that explains as well.
TensorRT builds for the GPU at hand; TensorRT-RTX needs none and builds for the
compute capabilities that are named."""
EPILOG = "example: foveate engines models/resnet18/1 --flavour tensorrt_rtx"


@dataclass(frozen=True, kw_only=True)
class Options(BundleOptions, TargetOptions):
    """The options of `foveate engines`."""

    variants: tuple[str, ...] = option(
        "the precisions; default: all that TensorRT takes", type=names, metavar="A,B"
    )
    json: bool = option("print the result as JSON")


def main(arguments: Sequence[str]) -> int:
    """Run `foveate engines` and return its exit code."""
    options = parse(Options, arguments, prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    return answer(lambda: _run(options), PROG)


def _run(options: Options) -> int:
    built = add_engines(
        options.bundle, options.variants, read_target(options), Stages(Console(stderr=True))
    )
    if options.json:
        print(json.dumps([sidecar.model_dump(mode="json") for sidecar in built], indent=2))
    else:
        print("\n".join(engine_line(sidecar) for sidecar in built))
    return DONE
