"""`foveate triton`: a bundle as a model of NVIDIA Triton."""

from collections.abc import Sequence
from dataclasses import dataclass

from foveate_export.commands._console import answer
from foveate_export.publish.triton import add_triton
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.console import DONE, positive
from foveate_runtime.options import BundleOptions, option, parse

PROG = "foveate triton"

DESCRIPTION = """\
Makes the repository of a bundle one that NVIDIA Triton serves as it is: adds
config.pbtxt and the labels to the model's folder, and to the version a small graph,
triton.onnx, that takes its weights from the bundle's file and needs the image alone. The
class to explain is optional then, and the best one where it is not given."""
EPILOG = "example: foveate triton models/resnet18/1"


@dataclass(frozen=True, kw_only=True)
class Options(BundleOptions):
    """The options of `foveate triton`."""

    variant: str | None = option("default: the bundle's first", metavar="NAME")
    max_batch: int = option(
        "the most pictures in a batch; default: 8", type=positive, default=8, metavar="N"
    )


def main(arguments: Sequence[str]) -> int:
    """Run `foveate triton` and return its exit code."""
    options = parse(Options, arguments, prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    return answer(lambda: _run(options), PROG)


def _run(options: Options) -> int:
    bundle = Bundle.open(options.bundle)
    variant = options.variant or bundle.manifest.variants[0].name
    for path in add_triton(bundle, variant, options.max_batch):
        print(path)
    return DONE
