"""A comparison's results as files: JSON, CSV, curves, and a page in Markdown."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from foveate_train.drawing import new_figure, saving
from foveate_train.studies import gradients, pages
from foveate_train.studies.comparison import Comparison
from foveate_train.studies.pages import markdown_row
from foveate_train.studies.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOTED = ("optimizer", "learning_rate", "schedule", "momentum", "weight_decay", "batch_size")
_CURVES, _GRADIENTS = "curves.png", "gradients.png"
_NONE = "–"  # noqa: RUF001  the sign for what is missing


def write(study: Comparison, results: Results, folder: Path) -> None:
    """Write all files of a study into `folder`.

    Raises:
        CheckpointError: the disk refuses.
        MissingPackageError: matplotlib is not installed.
    """
    pages.write(
        folder,
        results=results.model_dump_json(indent=1),
        table=table(study, results),
        page=page(study, results),
        pictures={
            _CURVES: saving(curves(study, results)),
            _GRADIENTS: saving(gradients_by_layer(study, results)),
        },
    )


def table(study: Comparison, results: Results) -> str:
    """Return one line of CSV for every epoch of every run; accuracies in percent."""
    return pages.table(
        ["variant", "seed", "epoch", "loss", "test_accuracy", "published", "seconds"],
        (
            [
                *(run.variant, run.seed, epoch.number, f"{epoch.loss:.4f}"),
                f"{100 * (epoch.accuracy or 0):.2f}",
                study.variants[run.variant].published.get(epoch.number, ""),
                f"{epoch.seconds:.1f}",
            ]
            for run in results.runs
            for epoch in run.epochs
        ),
    )


def page(study: Comparison, results: Results) -> str:
    """Return the page: the question, the setting, what was measured, and how to repeat it."""
    settings = results.settings
    seeds = sorted({run.seed for run in results.runs})
    one = len(seeds) == 1
    done = sum(len(run.epochs) for run in results.runs)
    wanted = len(results.runs) * int(settings["epochs"] or 0)
    return pages.filled(
        "comparison",
        {"machine": results.machine, "versions": results.versions},
        title=study.title,
        question=study.question,
        setting=study.setting,
        classifier=study.classifier,
        training=results.training_images,
        test=results.test_images,
        epochs=settings["epochs"],
        seeds=f"{'seed' if one else 'seeds'} {', '.join(map(str, seeds))}",
        precision=results.precision,
        noted=", ".join(f"{name} {settings[name]}" for name in _NOTED),
        so_far=""
        if done == wanted
        else f" {done} of these {wanted} epochs were run; a dash stands for one that was not.",
        spread="" if one else "; the mean over the seeds, with the least and the most",
        published="; beside it the published one" if _is_published(study) else "",
        dashed=", and the published one dashed" if _is_published(study) else "",
        why=study.why,
        pictures=gradients.PICTURES,
        seed=seeds[0],
        gradients=_GRADIENTS,
        sizes="\n".join(_sizes(study, results)),
        rows="\n".join(_rows(study, results)),
        curves=_CURVES,
        best="\n".join(_best(study, results)),
        command=pages.command(study.name, settings, results.training_images, seeds),
    )


def curves(study: Comparison, results: Results) -> "Figure":
    """Draw the accuracies by epoch, one line a variant, the published ones dashed."""
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    last = int(results.settings["epochs"] or 0)
    for number, (name, variant) in enumerate(study.variants.items()):
        colour = f"C{number}"
        epochs = [epoch for epoch in range(1, last + 1) if results.accuracies(name, epoch)]
        values = [[100 * a for a in results.accuracies(name, epoch)] for epoch in epochs]
        means = [sum(each) / len(each) for each in values]
        axes.plot(epochs, means, "o-", color=colour, label=variant.title, markersize=3)
        axes.fill_between(
            epochs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15
        )
        published = {e: a for e, a in variant.published.items() if e <= last}
        axes.plot(list(published), list(published.values()), "--", color=colour, alpha=0.5)
    axes.set_xlabel("epoch")
    axes.set_ylabel(
        f"test accuracy, percent{' (published: dashed)' if _is_published(study) else ''}"
    )
    axes.set_ylim(0, 101)
    axes.set_xlim(0.5, last + 0.5)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(study.variants))
    return figure


def gradients_by_layer(study: Comparison, results: Results) -> "Figure":
    """Draw the size of the gradient in each convolution, one line a variant, on a log scale."""
    figure = new_figure(8, 4)
    axes = figure.add_subplot()
    for number, (name, sizes) in enumerate(results.gradients.items()):
        layers = range(1, len(sizes) + 1)
        title = study.variants[name].title
        axes.plot(layers, sizes, "o-", color=f"C{number}", label=title, markersize=3)
    axes.set_yscale("log")
    axes.set_xlabel("convolution, from the input on")
    axes.set_ylabel("root mean square of the gradient")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(study.variants))
    return figure


def _rows(study: Comparison, results: Results) -> Iterator[str]:
    heads = ["epoch"]
    for variant in study.variants.values():
        heads += [variant.title, "published"] if variant.published else [variant.title]
    yield markdown_row(heads)
    yield markdown_row("---" for _ in heads)
    for epoch in range(1, int(results.settings["epochs"] or 0) + 1):
        cells = [str(epoch)]
        for name, variant in study.variants.items():
            cells.append(_measured(results.accuracies(name, epoch)))
            if variant.published:
                published = variant.published.get(epoch)
                cells.append(_NONE if published is None else f"{published:.2f}")
        yield markdown_row(cells)


def _sizes(study: Comparison, results: Results) -> Iterator[str]:
    """Tell each variant's gradient in its first and in its last convolution."""
    yield markdown_row(["network", "first convolution", "last convolution", "first / last"])
    yield markdown_row(["---"] * 4)
    for name, sizes in results.gradients.items():
        first, last = sizes[0], sizes[-1]
        cells = (f"{value:.2g}" for value in (first, last, first / last))
        yield markdown_row([study.variants[name].title, *cells])


def _is_published(study: Comparison) -> bool:
    return any(variant.published for variant in study.variants.values())


def _measured(accuracies: list[float]) -> str:
    if not accuracies:
        return _NONE
    mean = f"{100 * sum(accuracies) / len(accuracies):.2f}"
    if len(accuracies) == 1:
        return mean
    return f"{mean} [{100 * min(accuracies):.2f}, {100 * max(accuracies):.2f}]"


def _best(study: Comparison, results: Results) -> Iterator[str]:
    """Tell each variant's best accuracy, over epochs and seeds."""
    yield "Best of each:"
    yield ""
    for name, variant in study.variants.items():
        found = [
            (epoch.accuracy or 0.0, epoch.number)
            for run in results.runs
            if run.variant == name
            for epoch in run.epochs
        ]
        if found:
            accuracy, number = max(found)
            published = max(variant.published.values(), default=None)
            said = "" if published is None else f" (published: {published:g} %)"
            yield f"- {variant.title}: {100 * accuracy:.2f} % after epoch {number}{said}"
        else:
            yield f"- {variant.title}: not run yet"
