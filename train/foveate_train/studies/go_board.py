"""The rules of Go on 19 x 19, and a position as the 48 planes of AlphaGo.

A set of points is an integer: the point in row r from the top and column c from the left is
the bit 20 r + c. The twentieth column is never set, so that a shift never joins two rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIZE = 19
PLANES = 48
_ROW = SIZE + 1
BOARD = sum(((1 << SIZE) - 1) << (_ROW * row) for row in range(SIZE))
_STEPS = 8
"""Into how many planes a count is split: 1, 2, ..., and 8 or more."""
_SEARCHED = 200
"""How many moves a ladder may need before it counts as escaped from."""


class Outcome(NamedTuple):
    """What a move leads to.

    Attributes:
        own: the stones of who moved.
        other: the stones of the opponent that stay.
        captured: the stones of the opponent that are taken.
        chain: the stones that are joined to the one played, itself among them.
        liberties: of this chain.
    """

    own: int
    other: int
    captured: int
    chain: int
    liberties: int


class Position(NamedTuple):
    """A position, seen by who is to move.

    Attributes:
        own: the stones of who is to move.
        other: the stones of the opponent.
        ko: the point that may not be taken back, or none.
        recent: the points of the last eight moves, the last one first; 0 for a pass.
    """

    own: int = 0
    other: int = 0
    ko: int = 0
    recent: tuple[int, ...] = ()

    @property
    def empty(self) -> int:
        """The points without a stone."""
        return BOARD & ~(self.own | self.other)

    def outcome(self, point: int) -> Outcome | None:
        """Return what a move leads to; None for one that is against the rules.

        Only the simple ko is forbidden, no longer repetition.
        """
        if not point & self.empty or point == self.ko:
            return None
        captured = 0
        for chain in chains(self.other, around(point) & self.other):
            if around(chain) & self.empty == point:
                captured |= chain
        own, other = self.own | point, self.other & ~captured
        chain = spread(point, own)
        liberties = around(chain) & ~(own | other)
        return Outcome(own, other, captured, chain, liberties) if liberties else None

    def played(self, point: int) -> "Position":
        """Return the position of the opponent after a move.

        Raises:
            ValueError: the move is against the rules.
        """
        outcome = self.outcome(point)
        if outcome is None:
            raise ValueError(f"point {index(point)}: against the rules")
        return self.after(point, outcome)

    def after(self, point: int, outcome: Outcome) -> "Position":
        """Return the position of the opponent after a move."""
        alone = outcome.chain == point and outcome.liberties == outcome.captured
        ko = outcome.captured if alone and outcome.captured.bit_count() == 1 else 0
        return Position(outcome.other, outcome.own, ko, (point, *self.recent[: _STEPS - 1]))

    def passed(self) -> "Position":
        """Return the position of the opponent after a pass."""
        return Position(self.other, self.own, 0, (0, *self.recent[: _STEPS - 1]))

    def is_eye(self, point: int) -> bool:
        """Whether a point is an eye of who is to move, which it would be foolish to fill."""
        if around(point) & ~self.own:
            return False
        corners = _diagonal(point)
        allowed = 1 if corners.bit_count() == 4 else 0
        return (corners & self.other).bit_count() <= allowed

    def sensible(self) -> Iterator[tuple[int, Outcome]]:
        """Give the moves that the rules allow and that fill no eye of one's own."""
        for point in points(self.empty):
            outcome = self.outcome(point)
            if outcome and not self.is_eye(point):
                yield point, outcome


def bit(row: int, column: int) -> int:
    """Return the point of a row, from the top, and a column, from the left; both from 0."""
    return 1 << (_ROW * row + column)


def index(point: int) -> int:
    """Return the number of a point, 0 to 360, row by row from the top."""
    row, column = divmod(point.bit_length() - 1, _ROW)
    return SIZE * row + column


def points(those: int) -> Iterator[int]:
    """Give the points of a set one by one."""
    while those:
        point = those & -those
        yield point
        those ^= point


def around(those: int) -> int:
    """Return the neighbours of a set of points, and those of the set that touch each other."""
    return (those << 1 | those >> 1 | those << _ROW | those >> _ROW) & BOARD


def near(those: int) -> int:
    """Return the points at most one step away, diagonal ones too, and the set itself."""
    return those | around(those) | _diagonal(those)


def spread(those: int, stones: int) -> int:
    """Return all stones that are joined to some of them."""
    while (grown := (those | around(those)) & stones) != those:
        those = grown
    return those


def chains(stones: int, those: int) -> Iterator[int]:
    """Give the chains of `stones` that hold one of `those`."""
    while those:
        chain = spread(those & -those, stones)
        yield chain
        those &= ~chain


def liberties(position: Position, chain: int) -> int:
    """Return the liberties of a chain, of either side."""
    return around(chain) & position.empty


def escapes(position: Position, chain: int, left: Iterator[int] | None = None) -> dict[int, int]:
    """Return the moves that save a chain of who is to move, and its liberties then.

    The chain has one liberty. A move saves it where it has three liberties
    afterwards, or two and no ladder catches it.
    """
    left = iter(range(_SEARCHED)) if left is None else left
    tried = liberties(position, chain)
    for attacker in chains(position.other, around(chain) & position.other):
        freed = liberties(position, attacker)
        if freed.bit_count() == 1:
            tried |= freed
    found = {}
    for point in points(tried):
        outcome = position.outcome(point)
        if outcome is None:
            continue
        joined = spread(chain & -chain, outcome.own)
        free = around(joined) & ~(outcome.own | outcome.other)
        count = free.bit_count()
        if count >= 3 or (count == 2 and not catches(position.after(point, outcome), joined, left)):
            found[point] = count
    return found


def catches(position: Position, chain: int, left: Iterator[int] | None = None) -> list[int]:
    """Return the moves that catch a chain of the opponent in a ladder.

    The chain has two liberties; a move at one of them leaves it with one, and nothing saves it.
    """
    left = iter(range(_SEARCHED)) if left is None else left
    found = []
    for point in points(liberties(position, chain)):
        outcome = position.outcome(point)
        if outcome is None or next(left, None) is None:
            continue
        reply = position.after(point, outcome)
        is_atari = liberties(reply, chain).bit_count() == 1
        if is_atari and not escapes(reply, chain, left):
            found.append(point)
    return found


def planes(position: Position) -> NDArray[np.uint8]:
    """Return the 48 planes of a position, uint8 [48, 19, 19] of 0 and 1.

    They are those of the policy network of AlphaGo (Silver et al., 2016, extended data
    table 2), in its order:

        0      own stones                   20-27  stones that the move would capture
        1      the opponent's stones        28-35  own stones that it would leave in atari
        2      empty points                 36-43  liberties after the move
        3      ones                         44     the move catches in a ladder
        4-11   turns since the stone came   45     the move saves from a ladder
        12-19  liberties of its chain       46     the move is sensible
                                            47     zeros

    A count is split into planes of 1, 2, ..., and 8 or more; a count of 0 stands in none.
    """
    sets = [0] * PLANES
    stones = position.own | position.other
    sets[:4] = position.own, position.other, position.empty, BOARD
    older = stones
    for turns, point in enumerate(position.recent[: _STEPS - 1]):
        # Of a point that was played on twice, the stone there is of the last time.
        sets[4 + turns] = point & older
        older &= ~point
    sets[4 + _STEPS - 1] = older
    for side in (position.own, position.other):
        for chain in chains(side, side):
            free = liberties(position, chain).bit_count()
            _count(sets, 12, free, chain)
            if free == 1 and side == position.own:
                sets[45] |= sum(escapes(position, chain))
            if free == 2 and side == position.other:
                sets[44] |= sum(set(catches(position, chain)) - set(points(sets[44])))
    for point, outcome in position.sensible():
        free = outcome.liberties.bit_count()
        _count(sets, 20, outcome.captured.bit_count(), point)
        _count(sets, 28, outcome.chain.bit_count() if free == 1 else 0, point)
        _count(sets, 36, free, point)
        sets[46] |= point
    length = (SIZE * _ROW + 7) // 8
    packed = b"".join(each.to_bytes(length, "little") for each in sets)
    bits = np.unpackbits(
        np.frombuffer(packed, np.uint8).reshape(PLANES, length), axis=1, bitorder="little"
    )
    return bits[:, : SIZE * _ROW].reshape(PLANES, SIZE, _ROW)[:, :, :SIZE].copy()


def _count(sets: list[int], first: int, count: int, those: int) -> None:
    if count:
        sets[first + min(count, _STEPS) - 1] |= those


def _diagonal(those: int) -> int:
    return (those << _ROW + 1 | those >> _ROW + 1 | those << _ROW - 1 | those >> _ROW - 1) & BOARD
