"""What `foveate export --tensorrt` and `foveate engines` share."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from foveate_export.publish.tensorrt.target import BATCH, CLASSES, Target, choose_target
from foveate_runtime.backends.tensorrt.flavour import FLAVOURS
from foveate_runtime.backends.tensorrt.sidecar import ENGINE_SUFFIX, ENGINES_FOLDER, Range, Sidecar
from foveate_runtime.console import names
from foveate_runtime.options import option


def _range(text: str) -> Range:
    try:
        minimum, optimum, maximum = (int(part) for part in text.split(","))
        return Range(minimum=minimum, optimum=optimum, maximum=maximum)
    except (ValueError, ValidationError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: three whole numbers from 1 that do not fall, such as {BATCH}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What engines are built by and for."""

    flavour: str | None = option(
        "the library; default: the first installed", group="engines", choices=list(FLAVOURS)
    )
    compute_capability: tuple[str, ...] = option(
        "the GPUs to build for, such as 8.9,12.0; default: the one at hand",
        group="engines",
        type=names,
        metavar="A,B",
    )
    batch: Range = option(
        f"how many pictures at once; default: {BATCH}",
        group="engines",
        type=_range,
        default=BATCH,
        metavar="MIN,OPT,MAX",
    )
    classes: Range = option(
        f"how many classes explained at once; default: {CLASSES}",
        group="engines",
        type=_range,
        default=CLASSES,
        metavar="MIN,OPT,MAX",
    )
    timing_cache: Path | None = option(
        "keeps what TensorRT measured, for the next build on this GPU",
        group="engines",
        metavar="FILE",
    )


def read_target(options: TargetOptions) -> Target:
    """Return what the options say; raises what `choose_target` raises."""
    return choose_target(
        options.flavour,
        options.compute_capability,
        batch=options.batch,
        classes=options.classes,
        timing_cache=options.timing_cache,
    )


def engine_line(sidecar: Sidecar) -> str:
    """Describe an engine in a line."""
    return (
        f"{ENGINES_FOLDER}/{sidecar.stem}{ENGINE_SUFFIX}: {sidecar.engine_size / 1e6:.1f} MB, "
        f"batch {sidecar.batch.minimum} to {sidecar.batch.maximum}, "
        f"{sidecar.flavour} {sidecar.version}"
    )
