"""A player of Go by a few rules, which draws among moves that are equal to it.

It captures what it can, saves what it can, catches in a ladder what it can, and else answers
near the last move where that gives it liberties and takes some from the opponent. Now and
then it plays far from all stones instead. It is weak, and its moves follow from the board.
"""

import random
from collections.abc import Iterator, Sequence

from foveate_train.studies.go_board import (
    BOARD,
    SIZE,
    Outcome,
    Position,
    around,
    bit,
    catches,
    chains,
    escapes,
    liberties,
    near,
    points,
)

ELSEWHERE = 1 / 8
"""How often it plays far from all stones."""
MOVES = 120
"""How many moves a game has at most."""
_LINES = range(2, SIZE - 2)
# The third line and what lies within.
_INNER = sum(bit(row, column) for row in _LINES for column in _LINES)


def game(seed: int) -> Iterator[int]:
    """Play a game against itself; give its moves, as points."""
    draw = random.Random(seed)  # noqa: S311  no secret
    position = Position()
    for _ in range(MOVES):
        far, best = elsewhere(position), answers(position)
        chosen = far if far and (not best or draw.random() < ELSEWHERE) else best
        if not chosen:
            return
        point = draw.choice(chosen)
        yield point
        position = position.played(point)


def likeliest(position: Position) -> float:
    """Return the probability of the player's likeliest move, above which no guess is right."""
    far, best = elsewhere(position), answers(position)
    share = ELSEWHERE if far and best else float(bool(far))
    chances = dict.fromkeys(best, (1 - share) / max(len(best), 1))
    for point in far:
        chances[point] = chances.get(point, 0) + share / len(far)
    return max(chances.values(), default=0.0)


def answers(position: Position) -> Sequence[int]:
    """Return the moves that are the best by the rules, all alike; none where none is."""
    moves = dict(position.sensible())
    return (
        _largest({point: each.captured.bit_count() for point, each in moves.items()})
        or _rescues(position, moves)
        or _ladders(position, moves)
        or _replies(position, moves)
    )


def elsewhere(position: Position) -> Sequence[int]:
    """Return the points from the third line on that are the farthest from all stones."""
    taken = position.own | position.other
    if not taken:
        return list(points(_INNER))
    left = _INNER & ~near(taken)
    while left and (farther := left & ~near(BOARD & ~left)) and farther & _INNER:
        left = farther
    return [point for point in points(left) if position.outcome(point)]


def _rescues(position: Position, moves: dict[int, Outcome]) -> Sequence[int]:
    found: dict[int, int] = {}
    for chain in chains(position.own, position.own):
        if liberties(position, chain).bit_count() == 1:
            for point in escapes(position, chain):
                if point in moves:
                    found[point] = max(found.get(point, 0), chain.bit_count())
    return _largest(found)


def _ladders(position: Position, moves: dict[int, Outcome]) -> Sequence[int]:
    found: dict[int, int] = {}
    for chain in chains(position.other, position.other):
        if liberties(position, chain).bit_count() == 2:
            for point in catches(position, chain):
                if point in moves:
                    found[point] = max(found.get(point, 0), chain.bit_count())
    return _largest(found)


def _replies(position: Position, moves: dict[int, Outcome]) -> Sequence[int]:
    """Return the moves near the last one that give liberties and take some."""
    if not position.recent or not position.recent[0]:
        return []
    close = near(near(position.recent[0]))
    values = {}
    for point, each in moves.items():
        free = each.liberties.bit_count()
        if point & close and free > 1:
            touched = chains(each.other, around(point) & each.other)
            theirs = sum(
                (around(chain) & BOARD & ~(each.own | each.other)).bit_count() for chain in touched
            )
            joined = len(list(chains(position.own, around(point) & position.own)))
            # Above 0 for all, as `_largest` wants it.
            values[point] = 1000 + 2 * min(free, 8) - theirs - 3 * joined
            values[point] += 6 * bool(around(point) & each.other)
    return _largest(values)


def _largest(values: dict[int, int]) -> list[int]:
    """Return the points with the largest value; none where that is 0."""
    most = max(values.values(), default=0)
    return [point for point, value in values.items() if value == most] if most else []
