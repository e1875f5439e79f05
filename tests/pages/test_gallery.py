"""The gallery's page, its pictures, and the script that draws them."""

import importlib.util
import shlex
from pathlib import Path

import pytest
from PIL import Image

from foveate_train.commands import visualize

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "gallery"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "scripts" / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_the_scripts(gallery):
    assert (ROOT / "docs" / "gallery.md").read_text() == gallery.page()


def test_each_picture_is_there_and_all_are_small(gallery):
    kept = {file.name for file in FOLDER.iterdir()}
    assert kept == {drawing.name for drawing in gallery.DRAWINGS}
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4 * 2**20
    for file in FOLDER.iterdir():
        with Image.open(file) as picture:
            assert min(picture.size) > 100


def test_each_kind_of_picture_is_shown(gallery):
    shown = {shlex.split(drawing.arguments)[0] for drawing in gallery.DRAWINGS}
    assert shown == set(visualize.COMMANDS)
