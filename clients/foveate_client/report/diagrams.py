"""The diagrams of a report, as HTML and SVG, with the data that a click on them selects.

Nothing here has a style attribute: the page's policy allows none.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from foveate_client.batch.evaluation import Bin

MOST_CLASSES = 20
"""Classes of a confusion matrix; of more, those that are confused, and of these the most often."""

_SHADES = 9
_SHORT = 3
_SIDE = 280
_LEFT, _TOP, _RIGHT, _BOTTOM = 48, 12, 12, 40


def matrix(pairs: Mapping[tuple[int, int], int], labels: Sequence[str]) -> str:
    """Return how often each right class (a row) was taken for each class (a column).

    `pairs` counts the right class and the one that was found. Each count is a button with
    the two in `data-target` and `data-found`.
    """
    classes = _shown(pairs)
    largest = max((pairs.get((a, b), 0) for a in classes for b in classes if a != b), default=0)
    heading = "".join(
        f'<th scope="col"><span title="{escape(labels[x])}">{escape(labels[x])}</span></th>'
        for x in classes
    )
    # A digit need not be read sideways.
    kind = "matrix" if any(len(labels[x]) > _SHORT for x in classes) else "matrix short"
    lines = [f"<tr><td></td>{heading}</tr>"]
    for target in classes:
        name = escape(labels[target])
        cells = "".join(_cell(pairs, labels, target, found, largest) for found in classes)
        lines.append(f'<tr><th scope="row"><span title="{name}">{name}</span></th>{cells}</tr>')
    return (
        f'<div class="{kind}"><table aria-label="confusion matrix">{"".join(lines)}</table></div>'
    )


def leaves_out(pairs: Mapping[tuple[int, int], int]) -> bool:
    """Return whether there are more classes than `matrix` shows."""
    return len({each for pair in pairs for each in pair}) > MOST_CLASSES


def _shown(pairs: Mapping[tuple[int, int], int]) -> list[int]:
    if not leaves_out(pairs):
        return sorted({each for pair in pairs for each in pair})
    weight: Counter[int] = Counter()
    for (target, found), images in pairs.items():
        if target != found:
            weight.update({target: images, found: images})
    return sorted(sorted(weight, key=lambda each: (-weight[each], each))[:MOST_CLASSES])


def _cell(
    pairs: Mapping[tuple[int, int], int],
    labels: Sequence[str],
    target: int,
    found: int,
    largest: int,
) -> str:
    images = pairs.get((target, found), 0)
    if not images:
        return "<td></td>"
    if target == found:
        kind, told = "right", f"{images:,} of {labels[target]} are right"
    else:
        kind = f"shade-{max(1, -(-_SHADES * images // largest))}"
        told = f"{images:,} of {labels[target]} are taken for {labels[found]}"
    return (
        f'<td><button type="button" class="{kind}" data-target="{target}" data-found="{found}" '
        f'title="{escape(told)}" aria-label="{escape(told)}">{images:,}</button></td>'
    )


def reliability(bins: Sequence[Bin], axis: str, field: str) -> str:
    """Return a reliability diagram as SVG; a bar has its bounds, of `field`, in its data."""
    shapes = [f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" class="diagonal"/>']
    shapes += [_bar(found, field) for found in bins if found.images]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        shapes += [
            _caption(_x(tick), _y(0) + 16, f"{tick:g}"),
            _caption(_x(0) - 8, _y(tick) + 4, f"{tick:g}", anchor="end"),
        ]
    shapes += [
        _caption(_x(0.5), _y(0) + 34, escape(axis)),
        f'<g transform="translate(12 {_y(0.5)}) rotate(-90)">{_caption(0, 0, "accuracy")}</g>',
        _box(_x(0), _y(1), _SIDE, _SIDE, "frame"),
    ]
    width, height = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="group" aria-label="reliability diagram">{"".join(shapes)}</svg>'
    )


def _bar(found: Bin, field: str) -> str:
    note = (
        f"{found.images:,} images: accuracy {found.accuracy:.1%}, "
        f"mean {field} {found.confidence:.1%}"
    )
    width = _SIDE * (found.upper - found.lower) - 1
    middle = _x((found.lower + found.upper) / 2)
    return (
        f'<g class="bin" tabindex="0" role="button" aria-label="{note}" data-field="{field}" '
        f'data-lower="{found.lower:.6f}" data-upper="{found.upper:.6f}"><title>{note}</title>'
        # All of the column can be clicked, however low its bar is.
        f"{_box(_x(found.lower), _y(1), width, _SIDE, 'column')}"
        f"{_box(_x(found.lower), _y(found.accuracy), width, _SIDE * found.accuracy, 'bar')}"
        f'<circle cx="{middle:.1f}" cy="{_y(found.confidence):.1f}" r="3" class="dot"/></g>'
    )


def _box(x: float, y: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{kind}"/>'
    )


def _caption(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _x(share: float) -> float:
    return _LEFT + _SIDE * share


def _y(share: float) -> float:
    return _TOP + _SIDE * (1 - share)
