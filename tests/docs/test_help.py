"""The help of every command, as people read it."""

import re
from importlib.metadata import entry_points
from itertools import pairwise

import pytest

from foveate_train.commands import train, visualize

POINTS = {entry.name: entry for entry in entry_points(group="foveate.commands")}
INVOCATIONS = [
    *([name] for name in POINTS),
    *(["train", name] for name in train.COMMANDS),
    *(["visualize", name] for name in visualize.COMMANDS),
    ["export", "net.onnx"],
]
# What must not show: Python's own words for values, and names of classes.
INTERNAL = re.compile(r"Undefined|<class|<function|Namespace|NoneType|\bNone\b|object at 0x")


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        POINTS[words[0]].load()([*words[1:], "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", INVOCATIONS, ids=" ".join)
def test_help_has_an_example_and_no_internal_names(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(words, capsys)
    assert text.startswith(f"usage: foveate {words[0]}")
    joined = " ".join(text.split())
    assert f"example: foveate {' '.join(words[:1] if words[0] == 'export' else words)}" in joined
    assert not INTERNAL.findall(text)


@pytest.mark.parametrize("words", INVOCATIONS, ids=" ".join)
def test_every_option_is_described(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = help_of(words, capsys).splitlines()
    bare = {line for line in lines if line.startswith("  -") and "  " not in line.strip()}
    # A long option has its text in the next line, further in.
    followed = {line for line, after in pairwise(lines) if after.startswith(" " * 10)}
    assert not bare - followed
