"""The options of benchmarks whose results are on a page, and how these end."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from benchmarks import machine, pages
from foveate_runtime.options import option
from foveate_runtime.options import parse as parse_into


def folder(text: str, variable: str, *, needed: bool = True) -> Any:
    """Return a field that is the option of a folder; an environment variable has its default."""
    default = os.environ.get(variable)
    text = f"{text}; default: {variable} of the environment"
    return option(text, metavar="DIR", default=default, required=needed and default is None)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all of them take."""

    repository: Path = option("of the classifiers", default=Path("demo-output/repository"))
    out: Path = option("the file of the results", required=False)
    page: Path = option("whose part is written", required=False)


@dataclass(frozen=True, kw_only=True)
class Photographs(Options):
    """What those take that send photographs."""

    images: Path = folder("the photographs", "FOVEATE_IMAGENET_DIR")


@dataclass(frozen=True, kw_only=True)
class Calibrated(Photographs):
    """What those take that export a variant in int8 as well."""

    calibration: Path = folder("photographs to calibrate on", "FOVEATE_CALIBRATION_DIR")


OptionsT = TypeVar("OptionsT", bound=Options)


def parse(options: type[OptionsT], doc: str | None, *, out: Path, page: Path) -> OptionsT:
    """Parse the command line.

    Args:
        options: what the benchmark takes.
        doc: begins with the line that describes it.
        out: the results file where the command line has none.
        page: the page where the command line has none.
    """
    return parse_into(
        options,
        sys.argv[1:],
        prog=f"python -m benchmarks.{out.stem}",
        description=(doc or "").partition("\n")[0],
        epilog="",
        defaults={"out": out, "page": page},
    )


def finish(
    result: Mapping[str, Any], page_part: Callable[[Mapping[str, Any]], str], options: Options
) -> None:
    """Write a result to `--out`, and what the page says of it to `--page` and to stdout."""
    # The result comes first: what took long to measure is kept, whatever the page lacks.
    machine.save(result, options.out)
    part = page_part(result)
    pages.write_part(options.page, result["benchmark"], part)
    Console().print(part, soft_wrap=True)
    Console(stderr=True).print(f"written to {options.out} and {options.page}")
