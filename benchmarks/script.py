"""The options of a benchmark that asks servers for photographs, and how it ends."""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, pages


def parser(doc: str, *, out: Path, page: Path) -> argparse.ArgumentParser:
    """Return a parser of what all of them take; `doc` begins with the line that describes one."""
    options = argparse.ArgumentParser(description=doc.partition("\n")[0])
    options.add_argument("--repository", type=Path, default=Path("demo-output/repository"))
    options.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    options.add_argument("--out", type=Path, default=out)
    options.add_argument("--page", type=Path, default=page, help="whose part is written")
    return options


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; without photographs it is a wrong usage."""
    options = parser.parse_args()
    if options.images is None:
        parser.error("--images DIR is needed where FOVEATE_IMAGENET_DIR is not set")
    return options


def finish(
    result: Mapping[str, Any],
    page_part: Callable[[Mapping[str, Any]], str],
    options: argparse.Namespace,
) -> None:
    """Write a result to `--out`, and what the page says of it to `--page` and to stdout."""
    # The result comes first: what took long to measure is kept, whatever the page lacks.
    machine.save(result, options.out)
    part = page_part(result)
    pages.write_part(options.page, result["benchmark"], part)
    Console().print(part, soft_wrap=True)
    Console(stderr=True).print(f"written to {options.out} and {options.page}")
