"""What `foveate classify` draws in terminals of several kinds, each played by a pseudo-terminal."""

import base64
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from foveate_client import Cam, Client
from foveate_client.commands._pictures import drawn
from foveate_client.commands._terminal import HalfBlocks

SIXEL_TERMINAL = {b"\x1b[c": b"\x1b[?62;4;22c"}
KITTY = {b"\x1b[c": b"\x1b[?62;22c", b"\x1b_G": b"\x1b_Gi=1;OK\x1b\\"}
PLAIN_TERMINAL = {b"\x1b[c": b"\x1b[?62;22c"}
SIZE = struct.pack("HHHH", 50, 120, 1200, 1000)  # rows, columns, width and height in pixels
PROGRAM = "import sys; from foveate_client.cli import main; sys.exit(main(sys.argv[1:]))"
WITHOUT_EXTRA = f"import sys; sys.modules['textual_image'] = None; {PROGRAM}"
HALF_BLOCK = "▀"


@pytest.fixture
def classify(server, coffee):
    """Return a function that runs the command in a terminal and returns what it wrote."""

    def run(answers: dict[bytes, bytes], *flags: str, program=PROGRAM, term="xterm-256color"):
        command = [sys.executable, "-c", program, "classify", coffee, "--address", server.address]
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, SIZE)
        environment = {**os.environ, "TERM": term, "COLORTERM": ""}
        for name in ("COLUMNS", "LINES"):  # would be believed more than the terminal
            environment.pop(name, None)
        with subprocess.Popen(
            [*command, *flags],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            written, unasked = b"", dict(answers)
            while part := read(ours):
                written += part
                for question in [x for x in unasked if x in part]:
                    os.write(ours, unasked.pop(question))
        os.close(ours)
        assert process.returncode == 0, written.decode()
        return written

    return run


def read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # How Linux says that the other end of a terminal is closed.
        return b""


def test_a_terminal_with_sixels_gets_sixels(classify):
    written = classify(SIXEL_TERMINAL, "--cam")
    (sixels,) = re.findall(rb"\x1bP[\d;]*q(.*?)\x1b\\", written, re.DOTALL)
    _, _, width, height = map(int, re.match(rb'"(\d+);(\d+);(\d+);(\d+)', sixels).groups())
    assert width == 100 * 10
    assert height == pytest.approx(width * 400 / (2 * 600 + 12), abs=20)
    assert HALF_BLOCK.encode() not in written


def test_kitty_gets_the_picture_itself(classify, server, coffee):
    written = classify(KITTY, "--cam", term="xterm-kitty")
    parts = re.findall(rb"\x1b_G[^;]*f=100[^;]*;([^\x1b]*)\x1b\\", written)
    with Image.open(io.BytesIO(base64.b64decode(b"".join(parts)))) as opened:
        picture = opened.convert("RGB")
    with Client(server.address) as client:
        (expected,) = drawn(coffee, client.classify(coffee, cam=Cam()))
    assert picture.width / picture.height == pytest.approx(expected.width / 400, rel=0.05)
    difference = np.subtract(picture, expected.resize(picture.size), dtype=int)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("program", [PROGRAM, WITHOUT_EXTRA])
def test_any_terminal_of_colours_gets_half_blocks(classify, program):
    written = classify(PLAIN_TERMINAL, "--cam", program=program).decode()
    assert written.count(HALF_BLOCK) == 100 * round(100 * 400 / (2 * 600 + 12) / 2)
    assert "\x1bP" not in written


def test_feature_maps_are_shown_too(classify):
    assert HALF_BLOCK in classify(PLAIN_TERMINAL, "--feature-maps", "features.3").decode()


@pytest.mark.parametrize(
    ("flags", "term"),
    [
        (["--cam"], "dumb"),
        (["--cam", "--no-show"], "xterm-256color"),
        (["--cam", "--json"], "xterm-256color"),
        ([], "xterm-256color"),
    ],
)
def test_nothing_is_drawn_or_asked_where_it_is_not_wanted(classify, flags, term):
    written = classify({}, *flags, term=term)
    assert HALF_BLOCK.encode() not in written
    assert b"\x1b[c" not in written
    assert b"tiger cat" in written


def test_half_blocks_have_the_colours_of_the_picture(coffee):
    with Image.open(coffee) as opened:
        picture = opened.convert("RGB")
    file = io.StringIO()
    Console(
        file=file, force_terminal=True, color_system="truecolor", width=60, legacy_windows=False
    ).print(HalfBlocks(picture))
    cells = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m(▀+)", file.getvalue())
    columns = [tuple(map(int, cell[:6])) for cell in cells for _ in cell[6]]
    upper_lower = np.array(columns).reshape(20, 60, 2, 3)
    drawn = upper_lower.transpose(0, 2, 1, 3).reshape(40, 60, 3)
    expected = np.asarray(picture.resize((60, 40), Image.Resampling.BOX), int)
    assert np.array_equal(drawn, expected)


def test_a_picture_is_shown_no_larger_than_it_is():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=80)
    console.print(HalfBlocks(Image.new("L", (28, 28), 200)))
    assert file.getvalue().count(HALF_BLOCK) == 28 * 14
