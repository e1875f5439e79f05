"""`foveate card`: a model card of a bundle."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands._card import as_html, as_markdown
from foveate_runtime.console import DONE, UsageError, answer
from foveate_runtime.options import BundleOptions, option, parse

PROG = "foveate card"

DESCRIPTION = """\
Writes a model card of a bundle: what it is, what was measured of it, how far its answers
can be believed and what its maps are worth. Every figure names its place in the bundle's
files."""
EPILOG = "example: foveate card models/resnet18/2 --out card.md"

SUFFIXES = (".md", ".html")


class MissingError(Exception):
    """A package that a card needs; the message is the line that installs it."""


@dataclass(frozen=True, kw_only=True)
class Options(BundleOptions):
    """The options of `foveate card`."""

    out: Path = option(
        f"the card: {' or '.join(SUFFIXES)}; Markdown needs huggingface_hub", metavar="FILE"
    )


def main(arguments: Sequence[str]) -> int:
    """Write a card and return the exit code."""
    options = parse(Options, arguments, prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    return answer(lambda: _run(options), PROG, failures=(MissingError,))


def _run(options: Options) -> int:
    out = options.out
    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out must end in {' or '.join(SUFFIXES)}, not {out.name!r}")
    bundle = Bundle.open(options.bundle)
    text = as_html(bundle) if out.suffix == ".html" else hub_card(bundle)
    out.write_text(text, encoding="utf-8")
    print(out)
    return DONE


def hub_card(bundle: Bundle) -> str:
    """Return the card in Markdown, with what the Hugging Face Hub reads of it in front."""
    if find_spec("huggingface_hub") is None:
        raise MissingError(
            'a card in Markdown needs huggingface_hub: pip install "foveate-runtime[card]"'
        )
    hub: Any = import_module("huggingface_hub")
    manifest = bundle.manifest
    results = [
        hub.EvalResult(
            task_type="image-classification",
            dataset_type="image-folder",
            dataset_name=variant.accuracy.data,
            metric_type="accuracy",
            metric_name=f"top-1, {variant.name}",
            metric_value=variant.accuracy.top1,
        )
        for variant in manifest.variants
        if variant.accuracy is not None
    ]
    data = hub.ModelCardData(
        model_name=manifest.name,
        library_name="foveate",
        pipeline_tag="image-classification",
        tags=["onnx", "explainability"],
        eval_results=results or None,
    )
    card = hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{as_markdown(bundle)}")
    return str(card)
