"""What a study writes into its folder: results.json, mostly results.csv, the page, pictures."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from foveate_train.errors import CheckpointError


def write(
    folder: Path,
    *,
    results: str,
    page: str,
    pictures: Mapping[str, Callable[[Path], object]],
    table: str | None = None,
) -> None:
    """Write the files of a study; `pictures` holds what saves each picture, by file name.

    Raises:
        CheckpointError: the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"results.json": f"{results}\n", "results.csv": table, "README.md": page}
        for name, text in texts.items():
            if text is not None:
                (folder / name).write_text(text, encoding="utf-8")
        for name, save in pictures.items():
            save(folder / name)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error})") from error


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a CSV of these columns."""
    text = io.StringIO()
    written = csv.writer(text, lineterminator="\n")
    written.writerow(columns)
    written.writerows(rows)
    return text.getvalue()


def markdown_row(cells: Iterable[object]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def filled(template: str, environment: Mapping[str, Mapping[str, object]], **values: object) -> str:
    """Return a page: the Markdown of this name beside this module, with its values.

    `environment` is what the results were measured on, by `machine` and `versions`.
    """
    text = resources.files(__package__).joinpath(f"{template}.md").read_text(encoding="utf-8")
    measured_on = [
        f"{name.capitalize()}: {', '.join(f'{key} {value}' for key, value in known.items())}."
        for name, known in environment.items()
    ]
    return text.format(environment=" ".join(measured_on), **values)


def command(
    study: str, settings: Mapping[str, object], images: int, seeds: Iterable[object]
) -> str:
    """Return the command that repeats a study of so many training images."""
    given = " ".join(
        f"--{name.replace('_', '-')} {settings[name]}"
        for name in ("epochs", "batch_size", "learning_rate")
    )
    seeds = " ".join(map(str, seeds))
    return f"foveate train study {study} {given} --subset {images} --seeds {seeds}"
