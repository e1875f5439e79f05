"""The rules of Go, the planes, records, and the study of the next move."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from foveate_train import checkpoint, registry
from foveate_train.commands.train import main
from foveate_train.errors import DataError
from foveate_train.studies import go_player
from foveate_train.studies.go import Boards, attribution, turned
from foveate_train.studies.go_board import Position, bit, catches, escapes, index, planes, points
from foveate_train.studies.go_records import read

COLUMNS = "ABCDEFGHJKLMNOPQRST"


def place(*names):
    """The set of points of these names, such as D4."""
    return sum(bit(19 - int(name[1:]), COLUMNS.index(name[0])) for name in names)


def on(planes_of, point):
    """The numbers of the planes that hold 1 at a point."""
    row, column = divmod(index(place(point)), 19)
    return set(np.flatnonzero(planes_of[:, row, column]))


def joined(stones, start):
    """The chain of a stone and its liberties, of a dictionary of stones by row and column."""
    chain, edge, free = {start}, [start], set()
    while edge:
        row, column = edge.pop()
        for beside in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if not (0 <= beside[0] < 19 and 0 <= beside[1] < 19):
                continue
            if beside not in stones:
                free.add(beside)
            elif stones[beside] == stones[start] and beside not in chain:
                chain.add(beside)
                edge.append(beside)
    return chain, free


@pytest.mark.parametrize("seed", [0, 1])
def test_chains_are_taken_as_a_plain_search_takes_them(seed):
    stones, position, taken = {}, Position(), 0
    for number, point in enumerate(go_player.game(seed)):
        own = divmod(index(point), 19)
        stones[own] = number % 2
        for beside in [each for each, side in stones.items() if side != number % 2]:
            if beside in stones:
                chain, free = joined(stones, beside)
                if not free:
                    taken += len(chain)
                    for each in chain:
                        del stones[each]
        position = position.played(point)
        for side, found in ((number % 2, position.other), (1 - number % 2, position.own)):
            assert found == sum(bit(*each) for each, own in stones.items() if own == side)
    assert taken > 0


def test_a_ko_may_not_be_taken_back_at_once_and_suicide_never():
    own, other = place("D4", "E5", "E3", "F4"), place("C4", "D5", "D3")
    # E4 is in own hands; the opponent's D4 is to be taken back from C4, D5, D3.
    taken = Position(other, own & ~place("F4") | place("F4")).played(place("E4"))
    assert taken.other & place("E4")
    assert not taken.own & place("D4")
    assert taken.ko == place("D4")
    assert taken.outcome(place("D4")) is None
    assert taken.passed().passed().outcome(place("D4"))
    alone = Position(0, place("A2", "B1"))
    assert alone.outcome(place("A1")) is None
    assert alone.outcome(place("A2")) is None, "a stone is there"


def test_the_planes_of_a_position():
    # Black, to move, has D4 in atari at D5; White has Q16 in atari at Q17, and A1 can be filled.
    own = place("D4", "P16", "R16", "Q15", "S1", "T2")
    other = place("C4", "E4", "D3", "Q16", "K10")
    found = planes(Position(own, other, recent=(place("K10"), place("T2"), 0, place("D4"))))
    assert found.shape == (48, 19, 19)
    assert found.dtype == np.uint8
    assert found[3].all()
    assert not found[47].any()
    assert found[:3].sum() == 361
    # Stones: whose, how many turns ago, how many liberties.
    assert on(found, "K10") == {1, 3, 4, 12 + 3}
    assert on(found, "T2") == {0, 3, 5, 12 + 2}
    assert on(found, "D4") == {0, 3, 7, 12 + 0}
    assert on(found, "P16") == {0, 3, 11, 12 + 2}
    # Q17 takes one stone, and has four liberties then: the stone's, and three of its own.
    assert on(found, "Q17") == {2, 3, 20, 36 + 3, 46}
    # D5 saves D4, with three liberties.
    assert on(found, "D5") == {2, 3, 36 + 2, 45, 46}
    # T1 is an eye: legal, with the liberties of the stones beside it, and foolish.
    assert on(found, "T1") == {2, 3}
    # D2 and C3 are open points; a move between White's stones leaves one stone in atari.
    assert 46 in on(found, "C3")
    corner = planes(Position(place("K10"), place("A3", "B2", "C1")))
    assert on(corner, "A2") == {2, 3, 28, 36, 46}
    assert on(corner, "B1") == {2, 3, 28, 36, 46}


def test_a_ladder_catches_unless_a_stone_breaks_it():
    # White's D16 has liberties at D15 and E16.
    own, other = place("C16", "D17", "C15"), place("D16")
    chain = place("D16")
    caught = catches(Position(own, other), chain)
    assert caught == [place("E16")] or place("E16") in caught
    broken = Position(own, other | place("Q4", "P4", "Q3", "P3", "O4"))
    assert len(catches(broken, chain)) < len(caught)
    # Seen by White, after the atari, nothing saves the stone in the one case, a move in the other.
    assert not escapes(Position(own, other).played(place("E16")), chain)
    assert escapes(broken.played(place("E16")), chain) == {place("D15"): 2}
    assert 44 in on(planes(Position(own, other)), "E16")


def test_boards_and_moves_are_turned_together():
    spec = registry.create("foveate:go_policy", weights="random:0", filters=32).input
    labels = torch.arange(0, 361, 7)
    images = torch.zeros(len(labels), 48, 19, 19, dtype=torch.uint8)
    images[:, 0].flatten(1).scatter_(1, labels[:, None], 1)
    seen = set()
    for epoch in range(1, 7):
        for batch in Boards(images, labels, spec).epoch(0, epoch, 8):
            assert (batch.images[:, 0].flatten(1).argmax(1) == batch.labels).all()
            assert batch.images[:, 0].sum() == len(batch.labels)
            seen |= {int(label) for label in batch.labels}
    assert len(seen) > len(labels)
    board = torch.arange(361).view(19, 19)
    assert len({tuple(turned(board, way).flatten().tolist()) for way in range(8)}) == 8


def _sgf(text):
    return f"(;GM[1]FF[4]SZ[19]{text})".encode()


def test_a_record_is_read_with_its_handicap_and_passes(tmp_path):
    path = tmp_path / "game.sgf"
    said = r"C[an approach; see (\]) \\]"
    text = f"HA[2]AB[pd] [dp];W[qf]{said};B[];W[nc](;W[aa])(;W[bb];B[cc])"
    path.write_bytes(_sgf(text))
    first, second, third = read(path)
    assert (first.point, first.number, first.is_black) == (place("R14"), 1, False)
    assert first.position.other == place("Q16", "D4")
    assert (second.point, second.number) == (place("O17"), 3)
    assert second.position.own == place("R14")
    # Who plays twice lets the other pass.
    assert third.position.own == place("R14", "O17")
    assert third.position.recent[:2] == (0, place("O17"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"1. e4 e5", "cannot be read as SGF"),
        (b"(;GM[1]SZ[9];B[aa])", "is of size 9, not 19"),
        (_sgf(";B[aa")[:-1], "cannot be read as SGF"),
        (_sgf("CA[klingon];B[aa]"), "unknown encoding: klingon"),
        (_sgf(";B[aa];AW[dd]"), "sets stones after move 1"),
        (_sgf(";B[aa];W[aa]"), "move 2 is against the rules"),
        (_sgf(";B[aa]C[" + "x" * 2**20 + "]"), "more than 1,048,576 bytes"),
        (_sgf(";B[zz]"), "cannot be read as SGF"),
    ],
)
def test_a_bad_record_is_refused_by_name(tmp_path, content, said, capsys):
    for name in ("a.sgf", "b.sgf"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(read(tmp_path / "a.sgf"))
    arguments = ["study", "go", "--games", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/a.sgf: " in error
    assert said in error


def test_a_small_network_foretells_moves_far_better_than_chance(tmp_path, capsys):
    out = tmp_path / "out"
    study = ["study", "go", "--epochs", "4", "--threads", "1", "--batch-size", "32"]
    assert main([*study, "--subset", "600", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["training_images"] == 600
    assert results["test_images"] == 120
    assert results["test_accuracy"] > 10 * results["chance"]
    assert results["test_accuracy"] < results["bound"] < 1
    assert sum(kind["moves"] for kind in results["kinds"].values()) == 120
    right = sum(kind["right"] for kind in results["kinds"].values())
    assert right == round(120 * results["test_accuracy"])
    with Image.open(out / "moves.png") as picture:
        assert min(picture.size) > 300
    played = [turn.point for turn in read(out / "games" / "000.sgf")]
    assert played == list(go_player.game(0))
    # The map of a move, from the checkpoint, is of what lies near: no layer sees farther than 13.
    kept = checkpoint.load(out / "checkpoint").classifier
    image = torch.from_numpy(planes(Position(place("D4"), place("D5"))))[None].float()
    values = attribution(kept.module, image, index(place("E4")))
    assert values.shape == (19, 19)
    assert values[:, :8].abs().max() > 0
    assert values[:, 4 + 11 + 1 :].abs().max() == 0
    # Records of a folder go the same way; there nothing is known of the player.
    again = [*study, "--games", str(out / "games"), "--out", str(tmp_path / "again")]
    assert main([*again, "--subset", "601"]) == 2
    assert "--subset 601 is not within 2 and 600" in capsys.readouterr().err
    assert main([*again, "--subset", "100"]) == 0
    read_again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert read_again["games"] == 1
    assert read_again["bound"] is None
    assert "Records of a folder, 1 of them" in (tmp_path / "again" / "README.md").read_text()


def test_points_are_counted_row_by_row_from_the_top():
    labels = registry.create("foveate:go_policy", weights="random:0", filters=32).labels
    assert [labels[index(place(name))] for name in ("A19", "T19", "K10", "A1", "T1")] == [
        *("A19", "T19", "K10", "A1", "T1")
    ]
    assert list(points(place("A1", "T19"))) == [place("T19"), place("A1")]
