"""The worked examples of the course: a page and a notebook of one file of Python.

`worked_examples.py` consists of cells, as editors know them: `# %%` begins one of code,
`# %% [markdown]` one of text, as a string. The file's own docstring is the first text.
"""

import ast
import base64
import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from threading import Event
from typing import Any, NamedTuple

import torch

from foveate_train.drawing import saving
from foveate_train.environment import machine, versions
from foveate_train.studies import pages
from foveate_train.studies.options import StudyOptions

NAME = "arithmetic"
NOTEBOOK = "arithmetic.ipynb"


class Cell(NamedTuple):
    """A cell: Markdown, or code with what it printed and the PNG of its figure."""

    source: str
    is_code: bool
    output: str = ""
    figure: bytes | None = None


def run(options: StudyOptions, stop: Event) -> bool:
    """Compute the examples, and write the page and the notebook; always complete."""
    del stop
    device = options.use_machine()
    done = executed(cells())
    record = {
        "study": NAME,
        "outputs": [cell.output for cell in done if cell.is_code],
        "machine": machine(device),
        "versions": versions(),
    }
    figures = [cell.figure for cell in done if cell.figure]
    pages.write(
        options.folder,
        results=json.dumps(record, indent=1),
        page=page(record),
        pictures={
            f"{number}.png": lambda path, figure=figure: path.write_bytes(figure)
            for number, figure in enumerate(figures, 1)
        }
        | {NOTEBOOK: lambda path: path.write_text(notebook(done), encoding="utf-8")},
    )
    return True


def page(results: Mapping[str, Any]) -> str:
    """Return the page: each cell, what it printed as `results.json` holds it, and its figure."""
    outputs = iter(results["outputs"])
    parts, figures = [], 0
    for cell in cells():
        if not cell.is_code:
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        if output := next(outputs):
            parts.append(f"```text\n{output.rstrip()}\n```")
        if _draws(cell):
            figures += 1
            parts.append(f"![What the code above draws]({figures}.png)")
    return pages.filled(
        NAME,
        {key: results[key] for key in ("machine", "versions")},
        cells="\n\n".join(parts),
        notebook=NOTEBOOK,
    )


def cells() -> list[Cell]:
    """Return the cells of the file, none of them executed."""
    text = resources.files(__package__).joinpath("worked_examples.py").read_text(encoding="utf-8")
    title, _, said = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")
    found = [Cell(f"# {title.rstrip('.')}\n\n{said}", is_code=False)]
    for part in text.split("# %%")[1:]:
        kind, _, source = part.partition("\n")
        is_code = "[markdown]" not in kind
        found.append(Cell(source.strip() if is_code else ast.literal_eval(source.strip()), is_code))
    return found


def executed(each: Sequence[Cell]) -> list[Cell]:
    """Run the cells of code in one namespace; return all cells with what they gave."""
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "worked_examples"}
    done = []
    for cell in each:
        if not cell.is_code:
            done.append(cell)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(cell.source, namespace)  # noqa: S102  our own file, which a notebook runs too
        figure = None
        if _draws(cell):
            kept = io.BytesIO()
            saving(namespace["figure"])(kept)
            figure = kept.getvalue()
        done.append(cell._replace(output=printed.getvalue(), figure=figure))
    return done


def notebook(done: Sequence[Cell]) -> str:
    """Return executed cells as a Jupyter notebook (format 4.5)."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps(
        {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
            "cells": [_entry(number, cell) for number, cell in enumerate(done)],
        },
        indent=1,
    )


def _draws(cell: Cell) -> bool:
    return cell.is_code and "\nfigure = " in f"\n{cell.source}"


def _entry(number: int, cell: Cell) -> dict[str, Any]:
    # A notebook shows the value of a cell's last line.
    source = f"{cell.source}\nfigure" if _draws(cell) else cell.source
    entry: dict[str, Any] = {
        "id": f"cell-{number}",
        "cell_type": "code" if cell.is_code else "markdown",
        "metadata": {},
        "source": source.splitlines(keepends=True),
    }
    if not cell.is_code:
        return entry
    outputs: list[dict[str, Any]] = []
    if cell.output:
        text = cell.output.splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if cell.figure:
        data = {"image/png": base64.b64encode(cell.figure).decode(), "text/plain": ["Figure"]}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
    return {**entry, "execution_count": None, "outputs": outputs}
