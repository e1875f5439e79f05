"""The chart of classifiers, read back from its figure."""

import itertools
import sys

import pytest
from benchmarks.chart import Place, chosen, draw
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.text import Annotation
from PIL import Image

from foveate_train.errors import MissingPackageError


@pytest.fixture(scope="module")
def figure():
    return draw(chosen(), caption="the source")


def test_every_classifier_stands_at_its_figures_with_its_area(figure):
    discs = [part for part in figure.axes[0].collections if isinstance(part, PathCollection)]
    # Those of the legends stand nowhere.
    drawn = {
        (*disc.get_offsets()[0], disc.get_sizes()[0]) for disc in discs if len(disc.get_offsets())
    }
    for circle in chosen():
        row = circle.row
        assert (row["operations"] / 1e9, row["top1"], 22 * row["parameters"] / 1e6) in drawn
    assert figure.axes[0].get_xscale() == "log"


def test_no_two_labels_overlap_and_none_is_cut(figure, tmp_path):
    figure.savefig(tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.size == (1650, 1050)
    renderer = FigureCanvasAgg(figure).get_renderer()
    labels = {
        part.get_text(): part.get_window_extent(renderer)
        for part in figure.axes[0].texts
        if isinstance(part, Annotation)
    }
    assert set(labels) == {circle.label for circle in chosen()}
    for (one, box), (other, second) in itertools.combinations(labels.items(), 2):
        assert not box.overlaps(second), (one, other)
    for label, box in labels.items():
        assert figure.bbox.contains(box.x0, box.y0), label
        assert figure.bbox.contains(box.x1, box.y1), label


def test_what_cannot_be_drawn_is_refused():
    first = chosen()[0]
    with pytest.raises(ValueError, match="no top-1 accuracy is published for AlexNet"):
        draw([first._replace(row={**first.row, "top1": None})])
    with pytest.raises(ValueError, match="7 families, and colours for 6"):
        draw([first._replace(family=str(number), place=Place(1, 2)) for number in range(7)])


def test_a_missing_matplotlib_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r'pip install "foveate-train\[plots\]"'):
        draw(chosen())
