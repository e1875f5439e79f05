import json
import sqlite3

import numpy as np
import pytest

from foveate_client.batch import journal
from foveate_client.batch.journal import Failure, Journal, JournalError, Row, reason_of

SETTINGS = {"model": "pets", "--top-k": 5, "--embeddings": []}


def row(name, position, **changes):
    values = {
        "name": name,
        "position": position,
        "label": "cat",
        "class_ids": np.array([3, 1], dtype=np.int32),
        "scores": np.array([0.75, 0.25], dtype=np.float32),
        "vectors": np.array([1.5, -2.0, 0.1], dtype=np.float32),
        "cam": None,
    }
    return Row(**values | changes)


def failure(name, position, *, transient=False):
    return Failure(
        name=name,
        position=position,
        code="UNAVAILABLE" if transient else "INVALID_ARGUMENT",
        reason="",
        message="no",
        transient=transient,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.csv.journal"


def test_a_journal_gives_back_what_it_was_given_in_the_order_of_the_input(path):
    with Journal(path, SETTINGS) as known:
        known.add(row("b", 1, cam="b.jpg"))
        known.add(failure("c", 2))
        known.add(row("a", 0, label=None))
        first, second = known.rows()
        assert (first.name, first.label, first.cam) == ("a", None, None)
        assert (second.name, second.label, second.cam) == ("b", "cat", "b.jpg")
        assert second.class_ids.tolist() == [3, 1]
        assert second.scores.tolist() == [0.75, 0.25]
        assert second.vectors.tolist() == np.array([1.5, -2.0, 0.1], dtype=np.float32).tolist()
        assert list(known.failures()) == [failure("c", 2)]


def test_a_run_that_goes_on_has_what_it_finds_again_and_nothing_else(path):
    with Journal(path, SETTINGS) as known:
        for position, name in enumerate("abc"):
            known.add(row(name, position))
        known.add(failure("d", 3))
        known.add(failure("e", 4))
        assert len(known) == 5
    with Journal(path, SETTINGS) as known:
        assert (len(known), list(known.rows()), list(known.failures())) == (0, [], [])
        assert known.has("b", 0)
        assert known.has("e", 1)
        known.add(row("f", 2))
        assert [x.name for x in known.rows()] == ["b", "f"]
        assert [x.name for x in known.failures()] == ["e"]
        assert len(known) == 3


@pytest.mark.parametrize("outcome", [row, failure])
def test_a_file_that_has_changed_is_another_picture(path, outcome):
    with Journal(path, SETTINGS) as known:
        known.add(outcome("a", 0), "100 7")
        assert known.has("a", 0, "100 7")
        assert not known.has("a", 0, "100 8")
        known.add(row("a", 0, label="dog"), "100 8")
        assert [x.label for x in known.rows()] == ["dog"]
        assert list(known.failures()) == []


def test_failures_are_tried_again_when_asked_for(path):
    with Journal(path, SETTINGS) as known:
        known.add(row("a", 0))
        known.add(failure("b", 1))
    with Journal(path, SETTINGS, retry_errors=True) as known:
        assert known.has("a", 0)
        assert not known.has("b", 1)


def test_a_journal_of_many_sources_is_refused_in_a_short_line(path):
    Journal(path, {"sources": ["x" * 50] * 1000}).close()
    with pytest.raises(JournalError, match="a run with sources") as raised:
        Journal(path, {"sources": ["y"]})
    assert len(str(raised.value)) < 600


def test_a_journal_without_sources_is_of_another_run(path):
    """As those were that Foveate wrote before it noted them."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE settings (value TEXT NOT NULL)")
    connection.execute("INSERT INTO settings VALUES (?)", (json.dumps(SETTINGS),))
    connection.execute("CREATE TABLE results (name TEXT PRIMARY KEY, position INTEGER NOT NULL)")
    connection.commit()
    connection.close()
    with pytest.raises(JournalError, match=r"sources None, not \['/a'\]; .*--overwrite"):
        Journal(path, SETTINGS | {"sources": ["/a"]})


def test_what_is_done_is_known_and_moves_with_the_input(path):
    with Journal(path, SETTINGS) as known:
        known.add(row("a", 0))
        known.add(row("b", 1))
        known.add(failure("c", 2))
        assert known.has("a", 5)
        assert known.has("c", 6)
        assert not known.has("d", 0)
        assert [(x.name, x.position) for x in known.rows()] == [("b", 1), ("a", 5)]
        assert [x.position for x in known.failures()] == [6]


def test_an_outcome_that_comes_twice_is_there_once(path):
    with Journal(path, SETTINGS) as known:
        known.add(row("a", 0))
        known.add(row("a", 3))
        assert [x.position for x in known.rows()] == [3]


def test_errors_that_may_pass_are_tried_again(path):
    with Journal(path, SETTINGS) as known:
        known.add(failure("a", 0, transient=True))
        known.add(failure("b", 1))
    with Journal(path, SETTINGS) as known:
        assert not known.has("a", 0)
        assert known.has("b", 1)


def test_other_settings_are_refused_by_name(path):
    with Journal(path, SETTINGS) as known:
        known.add(row("a", 0))
    with pytest.raises(JournalError, match=r"a run with --top-k 5, not 3; .*--overwrite"):
        Journal(path, SETTINGS | {"--top-k": 3})
    with Journal(path, SETTINGS) as known:
        assert known.has("a", 0)


def test_two_runs_cannot_share_a_journal(path):
    with Journal(path, SETTINGS), pytest.raises(JournalError, match="another run uses it"):
        Journal(path, SETTINGS)
    Journal(path, SETTINGS).close()


def test_another_file_is_not_taken_for_a_journal(path):
    path.write_bytes(b"image,class\n" * 100)
    with pytest.raises(JournalError, match="is no journal"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == b"image,class\n" * 100


def test_every_so_many_results_are_on_the_disk(path):
    known = Journal(path, SETTINGS)
    for position in range(journal.COMMIT_ROWS + 1):
        known.add(row(str(position), position))
    copy = path.with_name("copy")
    for suffix in ("", "-wal"):
        copy.with_name(copy.name + suffix).write_bytes(
            path.with_name(path.name + suffix).read_bytes()
        )
    known.close()
    connection = sqlite3.connect(copy)
    (count,) = connection.execute("SELECT count(*) FROM results").fetchone()
    connection.close()
    assert count == journal.COMMIT_ROWS


def test_removing_leaves_nothing(path):
    Journal(path, SETTINGS).close()
    journal.remove(path)
    journal.remove(path)
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_is_named():
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert reason_of(error) == "No space left on device"
