"""Records of games of Go, as SGF (Smart Game Format, FF[4]), of which the main line is read."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from foveate_train.errors import CheckpointError, DataError
from foveate_train.studies.go_board import SIZE, Position, bit, index

_LARGEST = 2**20
"""How many bytes a record may have; long games with comments have some ten thousand."""
_LETTERS = "abcdefghijklmnopqrs"
_TOKEN = re.compile(r"\s*(?:([();])|([A-Za-z]+)((?:\s*\[(?:\\.|[^\]\\])*\])+))", re.DOTALL)
_VALUE = re.compile(r"\[((?:\\.|[^\]\\])*)\]", re.DOTALL)
_CHARSET = re.compile(rb"CA\[([\w .:-]{1,40})\]")

Node = dict[str, list[str]]
"""The values of each property."""


class Turn(NamedTuple):
    """A move of a game.

    Attributes:
        record: the name of its file.
        number: of the move, from 1.
        is_black: whether Black played it.
        position: before it, seen by who played it.
        point: where.
    """

    record: str
    number: int
    is_black: bool
    position: Position
    point: int


def write(path: Path, moves: Iterable[int], *, player: str) -> None:
    """Write a game of a player against itself; Black begins.

    Raises:
        CheckpointError: the disk refuses.
    """
    played = "".join(
        f";{'BW'[number % 2]}[{_LETTERS[column]}{_LETTERS[row]}]"
        for number, point in enumerate(moves)
        for row, column in [divmod(index(point), SIZE)]
    )
    text = f"(;GM[1]FF[4]CA[UTF-8]SZ[{SIZE}]PB[{player}]PW[{player}]{played})\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error})") from error


def read(path: Path) -> Iterator[Turn]:
    """Give the moves of a record, of its main line and without passes.

    Stones that are set up before the first move, such as a handicap, are there.

    Raises:
        DataError: the file cannot be read, is none of 19 x 19, or has a move against the rules.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{path}: has more than {_LARGEST:,} bytes")
        nodes = _nodes(path.read_bytes())
        yield from _turns(path, nodes)
    except (OSError, ValueError, LookupError) as error:
        raise DataError(f"{path}: cannot be read as SGF ({error})") from error


def _turns(path: Path, nodes: Iterable[Node]) -> Iterator[Turn]:
    turn, number, position = "B", 0, Position()
    for place, node in enumerate(nodes):
        if place == 0 and (size := node.get("SZ", ["19"])[0]) != str(SIZE):
            raise DataError(f"{path}: is of size {size}, not {SIZE}")
        if node.keys() & {"AB", "AW", "AE"}:
            if number:
                raise DataError(f"{path}: sets stones after move {number}")
            position = Position(_set_up(node, "AB"), _set_up(node, "AW"))
        for colour in "BW":
            if colour not in node:
                continue
            number += 1
            # Who plays twice lets the other pass.
            if colour != turn:
                position = position.passed()
            point = _point(node[colour][0], may_pass=True)
            if point:
                try:
                    following = position.played(point)
                except ValueError as error:
                    raise DataError(f"{path}: move {number} is against the rules") from error
                yield Turn(path.name, number, colour == "B", position, point)
            position = following if point else position.passed()
            turn = "W" if colour == "B" else "B"


def _nodes(content: bytes) -> list[Node]:
    """Return the nodes of the first game's main line, which ends where the first variation does.

    Raises:
        ValueError: this is no SGF.
        LookupError: its charset is unknown.
    """
    named = _CHARSET.search(content)
    text = content.decode(named[1].decode("ascii") if named else "utf-8", errors="replace")
    nodes: list[Node] = []
    place, end = text.find("("), False
    while place >= 0 and (token := _TOKEN.match(text, place)):
        place = token.end()
        mark, name, values = token.groups()
        if mark == ")":
            end = True
            break
        if mark == ";":
            nodes.append({})
        elif name and nodes:
            # FF[3] allows small letters in a name, which do not count.
            known = "".join(letter for letter in name if letter.isupper())
            nodes[-1].setdefault(known, []).extend(_VALUE.findall(values))
        elif name:
            raise ValueError(f"{name} stands before the first node")
    if not (end and nodes):
        raise ValueError("no whole game is in it")
    return nodes


def _set_up(node: Node, name: str) -> int:
    """Return a set of points, whose rectangles may be given by two corners."""
    stones = 0
    for value in node.get(name, []):
        first, _, last = value.partition(":")
        corners = [divmod(index(_point(each)), SIZE) for each in (first, last or first)]
        (top, left), (bottom, right) = corners
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                stones |= bit(row, column)
    return stones


def _point(value: str, *, may_pass: bool = False) -> int:
    """Return the point of a value; 0 for a pass.

    Raises:
        ValueError: there is no such point.
    """
    if may_pass and value.strip() in {"", "tt"}:
        return 0
    places = [_LETTERS.find(letter) for letter in value.strip()]
    if len(places) != 2 or -1 in places:
        raise ValueError(f"there is no point {value[:20]!r}")
    return bit(places[1], places[0])
