"""`foveate calibrate`: confidence, prediction sets and outliers for a bundle that is published."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import Manifest
from foveate_runtime.bundle.publishing import publish_beside, require_place
from foveate_runtime.bundle.trust import Policy, Trust
from foveate_runtime.console import DONE, UsageError, answer, points, positive, warn
from foveate_runtime.console import coverages as coverage_list
from foveate_runtime.evaluation.labelled import Labelled
from foveate_runtime.evaluation.trusted import (
    calibrate_bundle,
    open_calibrating,
)
from foveate_runtime.options import BundleOptions, option, parse

PROG = "foveate calibrate"

DESCRIPTION = """\
Classifies labelled pictures with every variant of a bundle, and finds how far its
answers can be believed: the temperature that calibrates its scores, the thresholds
of prediction sets, and how unlike the pictures another one is. The result is a new
version beside the old one. The pictures must be other ones than those of the training."""
EPILOG = "example: foveate calibrate models/resnet18/1 --data photos --coverage 0.9,0.95"


@dataclass(frozen=True, kw_only=True)
class Options(BundleOptions):
    """The options of `foveate calibrate`; `abstain_above` is a percentile."""

    data: str = option(
        "a folder with one folder a class, called as the label, by its WordNet id or by its "
        "index; a table of pictures and the labels of each, for independent labels; or MNIST's "
        "test set",
        metavar="DIR|FILE.csv|mnist",
    )
    coverage: tuple[float, ...] = option(
        "how often the prediction sets are to hold the right class; default: those of 0.9, "
        "0.95 and 0.99 that the pictures suffice for",
        type=coverage_list,
        metavar="A,B",
    )
    abstain_above: float | None = option(
        "the model abstains from pictures more unlike than this percentage of these",
        type=points,
        metavar="PERCENTILE",
    )
    abstain_set_larger_than: int | None = option(
        "the model abstains where the prediction set has more classes", metavar="N"
    )
    limit: int | None = option("take this many pictures", type=positive, metavar="N")
    corrupt: Literal["fail", "skip"] = option(
        "pictures that cannot be decoded: end this, or leave them out and count them; "
        "default: fail",
        default="fail",
    )
    json: bool = option("print the result as JSON")


def main(arguments: Sequence[str]) -> int:
    """Calibrate a bundle and return the exit code."""
    options = parse(Options, arguments, prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    return answer(lambda: _run(options), PROG)


def _run(options: Options) -> int:
    if (options.abstain_set_larger_than or 0) < 0:
        raise UsageError(f"--abstain-set-larger-than {options.abstain_set_larger_than} is below 0")
    bundle = Bundle.open(options.bundle)
    require_place(bundle)
    labelled = open_calibrating(options.data, bundle, options.limit)
    corrupt: list[str] | None = [] if options.corrupt == "skip" else None
    measured = _measured(bundle, labelled, options.coverage, corrupt)
    policy = Policy(
        abstain_above=options.abstain_above,
        abstain_set_larger_than=options.abstain_set_larger_than,
    )
    path = publish_beside(bundle, measured.model_copy(update={"policy": policy}))
    if corrupt:
        warn(PROG, f"{len(corrupt)} corrupt pictures left out, the first {corrupt[0]}")
    found = {entry.name: entry.trust for entry in measured.variants if entry.trust}
    if options.json:
        trust = {name: each.model_dump(mode="json") for name, each in found.items()}
        print(json.dumps({"path": str(path), "version": int(path.name), "trust": trust}))
    else:
        images = next(iter(found.values())).images
        print(f"{path}: calibrated on {images} pictures ({labelled.name})")
        for name, each in found.items():
            print("\n".join(f"{name}: {line}" for line in trust_lines(each)))
    return DONE


def trust_lines(trust: Trust) -> list[str]:
    """Return the results of the calibration of a variant as lines of text."""
    many = len(trust.temperatures)
    if not many:
        first = "no temperature can be found, as no picture was classified wrong"
    elif many == 1:
        first = f"temperature {trust.temperatures[0]:.3g}"
    else:
        first = f"temperatures from {min(trust.temperatures):.3g} to {max(trust.temperatures):.3g}"
    return [
        first,
        *(
            f"coverage {each.coverage:g}: a class belongs to the set from a score of "
            f"{1 - each.lac:.3g} on"
            for each in trust.sets
        ),
    ]


def _measured(
    bundle: Bundle, labelled: Labelled, coverages: Sequence[float], corrupt: list[str] | None
) -> Manifest:
    columns = (
        TextColumn("classifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        advance: Callable[[int], object] = partial(
            progress.advance, progress.add_task("", total=len(labelled))
        )
        return calibrate_bundle(bundle, labelled, coverages, advance, corrupt=corrupt)
