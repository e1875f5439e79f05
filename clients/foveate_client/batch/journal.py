"""The journal of a batch run: its results on disk. A kill at any moment loses and repeats none.

A journal is an SQLite database beside the output. Results are committed in groups. A
run that is resumed skips the pictures whose results were committed, and classifies
the others: a picture's name is the key of its row, and the size and the time of its
file must be the same. Each resumption has a number of its own: pictures that the
sources no longer contain are left out of its tables.
"""

import errno
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from foveate_client._exceptions import FoveateError

COMMIT_ROWS = 64
COMMIT_SECONDS = 1.0

_MOST_SHOWN = 200

_SETTINGS = "CREATE TABLE IF NOT EXISTS settings (value TEXT NOT NULL)"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    stamp TEXT NOT NULL,
    run INTEGER NOT NULL,
    label TEXT,
    class_ids BLOB NOT NULL,
    scores BLOB NOT NULL,
    vectors BLOB NOT NULL,
    cam TEXT,
    trust TEXT,
    tiles BLOB
);
CREATE TABLE IF NOT EXISTS errors (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    stamp TEXT NOT NULL,
    run INTEGER NOT NULL,
    code TEXT NOT NULL,
    reason TEXT NOT NULL,
    message TEXT NOT NULL,
    transient INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS results_in_order ON results (position, name);
CREATE INDEX IF NOT EXISTS errors_in_order ON errors (position, name);
"""


class JournalError(FoveateError):
    """A journal is of another run, is in use, or is no journal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTrust:
    """The trust in one picture's answer, as in `foveate_client.Trust`.

    `confidence` is that of the best class.
    """

    confidence: float | None
    coverage: float
    prediction_set: Sequence[int]
    ood_percentile: float
    abstained: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """One picture's result.

    `position` is its place in the input, and `label` the name of its folder or the
    label of its record. `class_ids` is int32 [k] and `scores` float32 [k], best
    first; `vectors` is float32 and flat: every embedding, then every feature
    map. `cam` is the file of its overlay, and `trust` None unless asked for; `tiles`
    are its pictures for a report, as `report.tiles.pack` makes them.
    """

    name: str
    position: int
    label: str | None
    class_ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]
    cam: str | None
    trust: RowTrust | None = None
    tiles: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why one picture has no result; a `transient` failure is retried when the run is resumed."""

    name: str
    position: int
    code: str
    reason: str
    message: str
    transient: bool


_REASONS = {
    sqlite3.SQLITE_BUSY: "another run uses it",
    sqlite3.SQLITE_LOCKED: "another run uses it",
    sqlite3.SQLITE_FULL: os.strerror(errno.ENOSPC),
    sqlite3.SQLITE_READONLY: os.strerror(errno.EROFS),
}


def reason_of(error: sqlite3.Error) -> str:
    """Return why the journal cannot be used, by the system's message where there is one."""
    return _REASONS.get(error.sqlite_errorcode & 0xFF, f"cannot be written ({error})")


class Journal:
    """The journal at `path`, opened for the run that `settings` describe, by one process.

    With `retry_errors`, pictures that failed before are retried. Raises JournalError
    where the file is in use, is no journal, or is of a run with other settings: the
    message names the first that differs. Raises OSError where it cannot be made.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, object], *, retry_errors: bool = False
    ) -> None:
        self._path = path
        self._retry_errors = retry_errors
        self._uncommitted = 0
        self._committed = time.monotonic()
        # SQLite's error does not say why a file cannot be made; the system's does.
        path.open("ab").close()
        self._database = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            self._open(settings)
        except sqlite3.OperationalError as error:
            self._database.close()
            raise JournalError(f"{path}: {reason_of(error)}") from error
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise JournalError(f"{path}: is no journal of a batch run") from error
        except JournalError:
            self._database.close()
            raise

    def _open(self, settings: Mapping[str, object]) -> None:
        run = self._database.execute
        # Held to the end: two runs must not write one output. It also spares the
        # write-ahead log its shared memory, which network file systems lack.
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        # Together with the settings, so that a kill leaves both or neither.
        run("BEGIN IMMEDIATE")
        run(_SETTINGS)
        known = run("SELECT value FROM settings").fetchone()
        if known is None:
            run("INSERT INTO settings VALUES (?)", (json.dumps(settings),))
        else:
            self._require_same(json.loads(known[0]), json.loads(json.dumps(settings)))
        for statement in _SCHEMA.split(";"):
            run(statement)
        known_columns = {name for _, name, *_ in run("PRAGMA table_info(results)")}
        for name, kind in (("trust", "TEXT"), ("tiles", "BLOB")):
            if name not in known_columns:
                # A run that an older version began.
                run(f"ALTER TABLE results ADD COLUMN {name} {kind}")
        run("DELETE FROM errors WHERE transient OR ?", (self._retry_errors,))
        (before,) = run("PRAGMA user_version").fetchone()
        self._run = int(before) + 1
        run(f"PRAGMA user_version = {self._run}")
        run("COMMIT")
        run("BEGIN")

    def _require_same(self, before: dict[str, object], now: dict[str, object]) -> None:
        for name, value in now.items():
            if before.get(name) != value:
                raise JournalError(
                    f"{self._path}: belongs to a run with {name} {_clip(before.get(name))}, "
                    f"not {_clip(value)}; give the same again, or --overwrite to start anew"
                )

    def is_of_this_run(self, name: str) -> bool:
        """Return whether this run has an outcome of the picture `name`."""
        found = self._database.execute(
            "SELECT 1 FROM results WHERE name = ?1 AND run = ?2 "
            "UNION ALL SELECT 1 FROM errors WHERE name = ?1 AND run = ?2",
            (name, self._run),
        )
        return found.fetchone() is not None

    def has(self, name: str, position: int, stamp: str = "") -> bool:
        """Return whether the picture `name` is done, and record its place in the input.

        It counts as not done where its `stamp`, the size and the time of its file, differs.
        """
        found = self._database.execute(
            "SELECT 'results', stamp FROM results WHERE name = ?1 "
            "UNION ALL SELECT 'errors', stamp FROM errors WHERE name = ?1",
            (name,),
        ).fetchone()
        if found is None:
            return False
        table, before = found
        if before != stamp:
            self._database.execute(f"DELETE FROM {table} WHERE name = ?", (name,))  # noqa: S608 - a constant
            return False
        self._database.execute(
            f"UPDATE {table} SET position = ?, run = ? WHERE name = ?",  # noqa: S608 - a constant
            (position, self._run, name),
        )
        return True

    def add(self, outcome: Row | Failure, stamp: str = "") -> None:
        """Record one picture's outcome, which is on disk after the next commit."""
        if isinstance(outcome, Row):
            self._database.execute(
                "INSERT OR REPLACE INTO results (name, position, stamp, run, label, class_ids, "
                "scores, vectors, cam, trust, tiles) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    outcome.name,
                    outcome.position,
                    stamp,
                    self._run,
                    outcome.label,
                    outcome.class_ids.astype("<i4").tobytes(),
                    outcome.scores.astype("<f4").tobytes(),
                    outcome.vectors.astype("<f4").tobytes(),
                    outcome.cam,
                    None if outcome.trust is None else json.dumps(asdict(outcome.trust)),
                    outcome.tiles or None,
                ),
            )
        else:
            self._database.execute(
                "INSERT OR REPLACE INTO errors VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    outcome.name,
                    outcome.position,
                    stamp,
                    self._run,
                    outcome.code,
                    outcome.reason,
                    outcome.message,
                    outcome.transient,
                ),
            )
        self._uncommitted += 1
        late = time.monotonic() - self._committed >= COMMIT_SECONDS
        if late or self._uncommitted >= COMMIT_ROWS:
            self.commit()

    def commit(self) -> None:
        """Commit the recorded outcomes to the disk."""
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")
        self._uncommitted = 0
        self._committed = time.monotonic()

    def rows(self) -> Iterator[Row]:
        """Yield the results of this run's pictures in the order of the input."""
        found = self._database.execute(
            "SELECT name, position, label, class_ids, scores, vectors, cam, trust, tiles "
            "FROM results WHERE run = ? ORDER BY position, name",
            (self._run,),
        )
        for name, position, label, class_ids, scores, vectors, cam, trust, tiles in found:
            yield Row(
                name=name,
                position=position,
                label=label,
                class_ids=np.frombuffer(class_ids, dtype="<i4"),
                scores=np.frombuffer(scores, dtype="<f4"),
                vectors=np.frombuffer(vectors, dtype="<f4"),
                cam=cam,
                trust=None if trust is None else RowTrust(**json.loads(trust)),
                tiles=tiles or b"",
            )

    def failures(self) -> Iterator[Failure]:
        """Yield the errors of this run's pictures in the order of the input."""
        for name, position, code, reason, message, transient in self._database.execute(
            "SELECT name, position, code, reason, message, transient "
            "FROM errors WHERE run = ? ORDER BY position, name",
            (self._run,),
        ):
            yield Failure(
                name=name,
                position=position,
                code=code,
                reason=reason,
                message=message,
                transient=bool(transient),
            )

    def __len__(self) -> int:
        """Return how many pictures of this run have an outcome."""
        (found,) = self._database.execute(
            "SELECT (SELECT count(*) FROM results WHERE run = ?1) "
            "+ (SELECT count(*) FROM errors WHERE run = ?1)",
            (self._run,),
        ).fetchone()
        return int(found)

    def close(self) -> None:
        """Commit, and close the file."""
        if self._database.in_transaction:
            self._database.execute("COMMIT")
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _clip(value: object) -> str:
    """Return a setting for people: of many sources, the first and the last."""
    text = repr(value)
    return (
        text
        if len(text) <= _MOST_SHOWN
        else f"{text[: _MOST_SHOWN // 2]}...{text[-_MOST_SHOWN // 2 :]}"
    )


def remove(path: Path) -> None:
    """Remove the journal at `path`, where there is one."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()
