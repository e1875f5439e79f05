"""Whether the drift of maps tells of a shift earlier than the drift of scores does.

    python -m benchmarks.drift [--repository DIR] [--fitted DIR] [--images DIR]

The repository holds `mnist`, a classifier of digits, and `efficientnet_lite0`. 1,000 of MNIST's
test digits are the reference, and others are answered. Photographs are too few to be parted:
those of `--fitted` and of `--images` are both. A shift is a mark stamped on the pictures, or a
corruption of them, and of each kind only those pictures count whose best class stays.

Scores are watched by four figures of `foveate_runtime.trust.drift`. Maps, of the best class
by the bundle's first method, are watched by four: the entropy of the positive part, the row and
the column of the peak, and the share on the border. An index is the population stability index
of the last `WINDOW` answers, all from before the shift first, looked at every `EVERY` answers.
Pictures are drawn with replacement.

The false-alarm rate is the same for all: of `STREAMS` streams without a shift each group of
figures alarms in one of a hundred. For that every index is divided by the 99th percentile of
the largest that it reaches in such a stream; a group alarms where its largest quotient is above
the 99th percentile of what the group reaches. The delay is the number of shifted answers until
the alarm.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from benchmarks.trust import opened
from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import CAM_PREFIX, CLASS_IDS_INPUT, IMAGE_INPUT, LOGITS_OUTPUT
from foveate_runtime.bundle.trust import Policy
from foveate_runtime.evaluation.accuracy import prepared_batches
from foveate_runtime.evaluation.labelled import open_labelled
from foveate_runtime.options import option
from foveate_runtime.trust import drift
from foveate_runtime.trust.answer import Assessor
from foveate_runtime.trust.calibration import calibrate

RESULTS = Path(__file__).parent / "results" / "drift.json"
PAGE = pages.DOCS / "trust.md"
FITTED, ANSWERED = 1000, 3000
WINDOW, EVERY = drift.WINDOW, 20
STREAMS, SHIFTED = 1000, 200
RATE = 0.99
SCORES, MAPS, BOTH = "scores", "maps", "both"
SMALLEST = 0.005
LEAST = 30
"""Pictures whose best class stays; fewer are no kind."""

Pictures = NDArray[np.uint8]
Doubles = NDArray[np.float64]
Bins = Mapping[str, NDArray[np.int64]]
Change = Callable[[Pictures, np.random.Generator], Pictures]


def stamp(pictures: Pictures, _: np.random.Generator, *, share: float) -> Pictures:
    """Stamp a white square with a black frame into the right bottom corner."""
    marked, side = pictures.copy(), max(3, round(share * pictures.shape[1]))
    marked[:, -side - 1 : -1, -side - 1 : -1] = 0
    marked[:, -side:-2, -side:-2] = 255
    return marked


def line(pictures: Pictures, _: np.random.Generator, *, width: float) -> Pictures:
    """Draw a white line along the left edge, as a scanner does."""
    marked = pictures.copy()
    marked[:, :, : max(1, round(width * pictures.shape[2]))] = 255
    return marked


def noise(pictures: Pictures, random: np.random.Generator, *, deviation: float) -> Pictures:
    """Add independent Gaussian noise, of a deviation in levels."""
    noisy = pictures + random.normal(0, deviation, pictures.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def blur(pictures: Pictures, _: np.random.Generator, *, share: float) -> Pictures:
    """Blur with a Gaussian whose deviation is a share of a side."""
    wide = ImageFilter.GaussianBlur(share * pictures.shape[1])
    flat = [Image.fromarray(each.squeeze()).filter(wide) for each in pictures]
    return np.stack([np.asarray(each) for each in flat]).reshape(pictures.shape)


def pale(pictures: Pictures, _: np.random.Generator, *, contrast: float) -> Pictures:
    """Lower the contrast around the middle grey."""
    return np.round(127.5 + contrast * (pictures - 127.5)).astype(np.uint8)


def shifted(pictures: Pictures, _: np.random.Generator, *, share: float) -> Pictures:
    """Move the picture to the right; what leaves at one edge enters at the other."""
    return np.roll(pictures, round(share * pictures.shape[2]), axis=2)


CHANGES: Mapping[str, Change] = {
    "a mark, small": partial(stamp, share=0.1),
    "a mark, large": partial(stamp, share=0.2),
    "a line at the edge": partial(line, width=0.04),
    "noise, weak": partial(noise, deviation=10),
    "noise, strong": partial(noise, deviation=40),
    "blur, weak": partial(blur, share=0.01),
    "blur, strong": partial(blur, share=0.03),
    "contrast, 70 %": partial(pale, contrast=0.7),
    "contrast, 40 %": partial(pale, contrast=0.4),
    "moved by a tenth": partial(shifted, share=0.1),
}


def of_maps(maps: NDArray[np.float32]) -> dict[str, Doubles]:
    """Return the figures of maps [N, h, w], float64 [N] each."""
    positive = np.maximum(maps, 0).astype(np.float64)
    total = positive.sum((1, 2), keepdims=True)
    part = positive / np.where(total > 0, total, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nan_to_num(part * np.log(part)).sum((1, 2))
    row, column = np.divmod(maps.reshape(len(maps), -1).argmax(axis=1), maps.shape[2])
    return {
        "map_entropy": entropy,
        "map_peak_row": row.astype(np.float64),
        "map_peak_column": column.astype(np.float64),
        "map_border": part.sum((1, 2)) - part[:, 1:-1, 1:-1].sum((1, 2)),
    }


def answers(runner: Runner, pictures: Pictures) -> tuple[Any, Any]:
    """Return logits [N, classes], and the maps [N, h, w] of the best classes."""
    method = next(name for name in runner.outputs if name.startswith(CAM_PREFIX))
    logits, maps = [], []
    for first in range(0, len(pictures), 32):
        part = pictures[first : first + 32]
        inputs = {IMAGE_INPUT: part, CLASS_IDS_INPUT: np.full((len(part), 1), -1)}
        found = runner.run(inputs, [LOGITS_OUTPUT, method])
        logits.append(found[LOGITS_OUTPUT])
        maps.append(found[method][:, 0])
    return np.concatenate(logits), np.concatenate(maps)


class Watch:
    """Says in which bin of the reference each figure of an answer lies."""

    def __init__(self, logits: Any, present: Any, maps: Any) -> None:
        trust = calibrate(
            logits,
            present,
            scores="softmax",
            coverages=(0.9,),
            data="reference",
            digest=f"sha256:{'0' * 64}",
        )
        self._assessor = Assessor(trust, Policy(), "softmax")
        figures = self._figures(logits, maps)
        self._reference = {name: drift.histogram(values) for name, values in figures.items()}
        scores = drift.measure(self._assessor, logits[:1], "softmax")
        self.groups = {
            SCORES: [name for name in figures if name in scores],
            MAPS: [name for name in figures if name not in scores],
            BOTH: list(figures),
        }

    def _figures(self, logits: Any, maps: Any) -> dict[str, Doubles]:
        return {**drift.measure(self._assessor, logits, "softmax"), **of_maps(maps)}

    def bins(self, logits: Any, maps: Any) -> Bins:
        """Return whether each figure of every answer lies in each bin, [N, bins] by figure."""
        found = {}
        for name, values in self._figures(logits, maps).items():
            edges = self._reference[name].edges
            places = np.searchsorted(edges, values)
            found[name] = np.eye(len(edges) + 1, dtype=np.int64)[places]
        return found

    def indices(self, before: Bins, after: Bins, random: np.random.Generator) -> dict[str, Doubles]:
        """Draw a stream; return each figure's index while its window fills with `after`."""
        old, new = (
            random.integers(0, len(bins["confidence"]), (WINDOW // EVERY, EVERY))
            for bins in (before, after)
        )
        found = {}
        for name, reference in self._reference.items():
            leaves, enters = before[name][old].sum(1), after[name][new].sum(1)
            inside = leaves.sum(0) - leaves.cumsum(0) + enters.cumsum(0)
            found[name] = drift.stability_index(np.array(reference.shares), inside)
        return found


def delays(watch: Watch, clean: Any, changed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, by kind of shift and group of figures, the delay and the share of alarms."""
    random = np.random.default_rng(0)
    calm = [watch.indices(clean, clean, random) for _ in range(STREAMS)]
    names = watch.groups[BOTH]
    # An index that never moves, as of sets that all have one class, alarms at its first move.
    scale = {
        name: max(SMALLEST, np.quantile([each[name].max() for each in calm], RATE))
        for name in names
    }

    def largest(found: Mapping[str, Doubles], group: str) -> Doubles:
        quotients = [found[name] / scale[name] for name in watch.groups[group]]
        result: Doubles = np.max(quotients, axis=0)
        return result

    limits = {
        group: np.quantile([largest(each, group).max() for each in calm], RATE)
        for group in watch.groups
    }
    rows: dict[str, dict[str, Any]] = {}
    for kind, bins in changed.items():
        streams = [watch.indices(clean, bins, random) for _ in range(SHIFTED)]
        rows[kind] = {}
        for group, limit in limits.items():
            over = np.array([largest(each, group) > limit for each in streams])
            seen = over.any(1)
            delay = np.where(seen, (over.argmax(1) + 1) * EVERY, WINDOW + EVERY)
            median = float(np.median(delay))
            rows[kind][group] = {
                "delay": median if median <= WINDOW else None,
                "alarms": round(float(seen.mean()), 3),
            }
    return rows


def examine(
    runner: Runner, fitted: tuple[Pictures, Any], answered: Pictures, console: Console
) -> dict[str, Any]:
    """Measure every change on a network."""
    pictures, targets = fitted
    logits, maps = answers(runner, pictures)
    present = np.eye(logits.shape[1], dtype=bool)[targets]
    watch = Watch(logits, present, maps)
    logits, maps = answers(runner, answered)
    clean, best = watch.bins(logits, maps), logits.argmax(1)
    changed, kept = {}, {}
    for kind, change in track(CHANGES.items(), "shifts", console=console):
        other, moved = answers(runner, change(answered, np.random.default_rng(1)))
        stays = other.argmax(1) == best
        if stays.sum() >= LEAST:
            changed[kind] = watch.bins(other[stays], moved[stays])
            kept[kind] = round(float(stays.mean()), 3)
    rows = delays(watch, clean, changed)
    return {
        "reference": len(pictures),
        "answered": len(answered),
        "rows": {kind: {"stays": kept[kind], **row} for kind, row in rows.items()},
    }


def pixels(data: str, bundle: Bundle) -> tuple[Pictures, Any]:
    """Return pictures as the network gets them, and their classes."""
    labelled = open_labelled(data, bundle.labels)
    batches = list(prepared_batches(labelled, bundle.manifest.input))
    images, targets = (np.concatenate([batch[at] for batch in batches]) for at in (0, 1))
    return images, targets


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    fitted: Path = option("photographs of the reference")


def main() -> None:
    """Measure, and write the results."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    console = Console(stderr=True)
    networks = {}
    digits, photos = (opened(options.repository, name) for name in ("mnist", "efficientnet_lite0"))
    with create_runner(digits, variant="fp32", backend="onnxruntime") as runner:
        images, targets = pixels("mnist", digits)
        # The first half of MNIST's test digits are easier than the others.
        order = np.random.default_rng(0).permutation(len(images))
        first, rest = order[:FITTED], order[FITTED : FITTED + ANSWERED]
        fitted = images[first], targets[first]
        networks["mnist"] = examine(runner, fitted, images[rest], console)
    with create_runner(photos, variant="fp32", backend="onnxruntime") as runner:
        parts = [pixels(str(folder), photos) for folder in (options.fitted, options.images)]
        images, targets = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
        networks["efficientnet_lite0"] = examine(runner, (images, targets), images, console)
    result = {"benchmark": "drift", "networks": networks, "machine": machine.describe()}
    script.finish(result, page_part, options)


def earlier(rows: Sequence[Mapping[str, Any]], one: str, other: str) -> int:
    """Return in how many rows a group of figures has alarmed earlier than another."""

    def delay(row: Mapping[str, Any], group: str) -> float:
        found: float | None = row[group]["delay"]
        return WINDOW + EVERY if found is None else found

    return sum(delay(row, one) < delay(row, other) for row in rows)


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""

    def cell(found: Mapping[str, Any]) -> str:
        if found["delay"] is None:
            return f"none ({found['alarms']:.0%})"
        return f"{found['delay']:.0f}"

    rows = [
        [
            f"`{model}`: {kind}",
            f"{row['stays']:.0%}",
            *(cell(row[group]) for group in (SCORES, MAPS, BOTH)),
        ]
        for model, network in result["networks"].items()
        for kind, row in network["rows"].items()
    ]
    every = [row for network in result["networks"].values() for row in network["rows"].values()]
    told = (
        f"Of {len(every)} shifts the maps alarmed earlier than the scores in "
        f"{earlier(every, MAPS, SCORES)}, later in {earlier(every, SCORES, MAPS)}; both together "
        f"earlier than the scores alone in {earlier(every, BOTH, SCORES)}, later in "
        f"{earlier(every, SCORES, BOTH)}."
    )
    head = ["shift", "best class stays", "scores", "maps", "both"]
    return f"{pages.table(head, rows)}\n\n{told}"


if __name__ == "__main__":
    main()
