"""The sources of pictures: folders, lists of paths, tar shards and Parquet tables.

Every source is read lazily, so that memory does not grow with the number of pictures.
"""

import errno
import os
import stat
import sys
import tarfile
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, TypeAlias, cast
from urllib.parse import unquote_to_bytes

from foveate_client._exceptions import FoveateError
from foveate_client.batch import arrow

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif"})
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
STDIN = "-"

_CLASS_EXTENSION = "cls"
_UTF16 = {BOM_UTF16_LE: "utf-16-le", BOM_UTF16_BE: "utf-16-be"}
_FILE_URL = "file:///"
_NO_SUFFIX = "without a suffix"
_NOT_PLAIN = "that are no plain files"

_CODES = {
    errno.EACCES: "PERMISSION_DENIED",
    errno.EPERM: "PERMISSION_DENIED",
    errno.ENOENT: "NOT_FOUND",
    errno.ENOTDIR: "NOT_FOUND",
}


class SourceError(FoveateError):
    """A source of pictures cannot be read."""


@dataclass(frozen=True, slots=True)
class Item:
    """A picture to classify.

    `name` identifies it; a path that is not UTF-8 is written as a URL
    (file:///caf%E9.jpg), which a list of paths may contain as well. `label` is the name
    of its folder or the label of its record, unchanged, and may be empty. `stamp` is the
    size and the time of change of its file: with another one it is another picture.
    """

    name: str
    image: Path | bytes
    label: str | None
    stamp: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A folder or a special file that cannot be read, with the name of a canonical code."""

    name: str
    code: str
    message: str
    reason: str = "FOLDER_UNREADABLE"


Found: TypeAlias = Item | Unreadable


class Passed:
    """Counts the files of a source that are skipped, by kind, and keeps the first of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def note(self, kind: str, name: str) -> None:
        """Count one more."""
        self.counts[kind] += 1
        self.first.setdefault(kind, _text(name))

    def __str__(self) -> str:
        return ", ".join(
            f"{count:,} {kind} (the first is {self.first[kind]})"
            for kind, count in self.counts.most_common()
        )


class Source(Protocol):
    """A sequence of pictures that can be read again from its beginning."""

    def items(self) -> Iterator[Found]:
        """Yield the pictures, and folders that cannot be read. Raises SourceError."""
        ...

    def count(self) -> int | None:
        """Return how many there are, without reading them; None where it cannot be known."""
        ...


def open_source(
    text: str,
    *,
    ordered: bool,
    hidden: bool = False,
    passed: Passed | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """Return the source that an argument of the command line names.

    A folder is read with everything below it; `.tar` is a webdataset shard,
    `.parquet` a table with the files' bytes in a column, `.txt` a list of paths,
    one a line, and `-` such a list on standard input. Anything else is taken
    for a picture's file. With `ordered`, a folder is read by name; with
    `hidden`, hidden files of a folder or a shard are read as well. Skipped files
    are counted in `passed`.
    """
    if text == STDIN:
        return Listing(None)
    path, passed = Path(text), Passed() if passed is None else passed
    if path.is_dir():
        return Folder(path, ordered=ordered, hidden=hidden, passed=passed)
    name = path.name.lower()
    if not path.exists():
        raise SourceError(f"there is no {path}")
    if name.endswith(SHARD_SUFFIXES):
        return Shard(path, hidden=hidden, passed=passed)
    if path.suffix.lower() == ".parquet":
        return Table(path, image_column=image_column, label_column=label_column)
    if path.suffix.lower() in LIST_SUFFIXES:
        return Listing(path)
    return Files([path])


def identity(text: str) -> str:
    """Return what identifies the source that an argument names, across runs."""
    path = Path(text)
    if text == STDIN or path.suffix.lower() in LIST_SUFFIXES:
        return f"{text if text == STDIN else path.absolute()} in {Path.cwd()}"
    return str(path.absolute())


def is_hidden(name: str) -> bool:
    """Return whether a file or a folder is hidden, or one of macOS's own."""
    return name.startswith(".") or name == "__MACOSX"


class Folder:
    """The pictures below a folder; each one's label is the name of the folder it lies in.

    With `ordered` the entries of a folder are held and sorted; without, they are
    taken as the file system lists them. Links to folders are not followed. A
    folder below that cannot be read is yielded as such.
    """

    def __init__(self, path: Path, *, ordered: bool, hidden: bool, passed: Passed) -> None:
        self._path = path
        self._ordered = ordered
        self._hidden = hidden
        self._passed = passed

    def items(self) -> Iterator[Found]:
        """Yield the pictures, and folders that cannot be read."""
        for found in self._walk(self._passed, ordered=self._ordered):
            yield found if isinstance(found, Unreadable) else _item(Path(found))

    def count(self) -> int:
        """Return how many there are."""
        return sum(isinstance(found, str) for found in self._walk(Passed(), ordered=False))

    def _walk(self, passed: Passed, *, ordered: bool) -> Iterator[str | Unreadable]:
        """Yield the paths of the pictures, and folders that cannot be read."""
        # A list and no recursion: trees are deeper than Python's stack. No folder stays open.
        left: list[os.DirEntry[str] | Path] = [self._path]
        while left:
            place = left.pop()
            if isinstance(place, os.DirEntry) and not _is_folder(place):
                yield place.path
                continue
            try:
                with os.scandir(place) as entries:
                    wanted = (entry for entry in entries if self._wants(entry, passed))
                    if ordered:
                        left += sorted(wanted, key=attrgetter("name"), reverse=True)
                        continue
                    for entry in wanted:
                        if _is_folder(entry):
                            left.append(entry)
                        else:
                            yield entry.path
            except OSError as error:
                message = f"cannot read {os.fspath(place)}: {error.strerror}"
                if place == self._path:
                    raise SourceError(message) from error
                code = _CODES.get(error.errno or 0, "UNKNOWN")
                yield Unreadable(_written(Path(place)), code, _text(message))

    def _wants(self, entry: os.DirEntry[str], passed: Passed) -> bool:
        kind = self._passed_as(entry)
        if kind:
            passed.note(kind, entry.path)
        return not kind

    def _passed_as(self, entry: os.DirEntry[str]) -> str:
        """Return the kind under which an entry is skipped, empty where it is read."""
        if not self._hidden and is_hidden(entry.name):
            return "hidden"
        if _is_folder(entry):
            return ""
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a path takes as long as the rest
        if suffix not in PICTURE_SUFFIXES:
            return suffix or _NO_SUFFIX
        # The folder's entry says so, unless it is a link: a stat may go over a network.
        if entry.is_file(follow_symlinks=False) or not _may_never_end(Path(entry.path)):
            return ""
        return _NOT_PLAIN


class Files:
    """Pictures by their paths."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def items(self) -> Iterator[Found]:
        """Yield the pictures."""
        return map(_file, self._paths)

    def count(self) -> int:
        """Return how many there are."""
        return len(self._paths)


class Listing:
    """A text file of paths, one a line, relative to the working directory; None is stdin.

    A byte-order mark may say that it is UTF-16, as Windows writes it; else names are bytes
    as the file system has them. Lines of white space are passed over, and `file:///...` is
    read as `Item` writes it.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def items(self) -> Iterator[Found]:
        """Yield the pictures, and what is no file."""
        for line in self._lines():
            yield _file(_read_back(line))

    def count(self) -> int | None:
        """Return how many there are; standard input can be read only once."""
        return None if self._path is None else sum(1 for _ in self._lines())

    def _lines(self) -> Iterator[str]:
        name = self._path or "standard input"
        try:
            if self._path is None:
                yield from _stripped(sys.stdin.buffer)
                return
            with self._path.open("rb") as lines:
                yield from _stripped(lines)
        except OSError as error:
            raise SourceError(f"cannot read {name}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SourceError(f"{name} begins as UTF-16 and is none: {error.reason}") from error


class Shard:
    """A tar file in webdataset's layout: members of one key follow each other.

    A member's key is its path up to the first dot of its name. The member with
    a picture's extension is the picture; `.cls` holds its class; without one,
    the label is the member's folder. Where no member of a key is a picture by
    that rule, as in 2023.05.01.jpg, keys end at the last dot.
    """

    def __init__(self, path: Path, *, hidden: bool, passed: Passed) -> None:
        self._path = path
        self._hidden = hidden
        self._passed = passed

    def items(self) -> Iterator[Found]:
        """Yield the pictures."""
        stamp = _stamp(self._path)
        for tar, members in self._samples(self._passed):
            picture, image, label = "", b"", None
            with self._errors():
                for member, extension in members:
                    if f".{extension}" in PICTURE_SUFFIXES and not picture:
                        picture, image = member.name, _content(tar, member)
                    elif extension == _CLASS_EXTENSION:
                        label = _content(tar, member).decode("utf-8", "replace").strip()
                    else:
                        kind = f".{extension}" if extension else _NO_SUFFIX
                        self._passed.note(kind, member.name)
            if picture:
                folder = PurePosixPath(picture).parent.name
                name = _text(f"{self._path}#{picture}")
                yield Item(name, image, _text(folder if label is None else label), stamp)

    def count(self) -> int:
        """Return how many there are, reading the headers alone."""
        return sum(
            any(f".{extension}" in PICTURE_SUFFIXES for _, extension in members)
            for _, members in self._samples(Passed())
        )

    def _samples(
        self, passed: Passed
    ) -> Iterator[tuple[tarfile.TarFile, Iterator[tuple[tarfile.TarInfo, str]]]]:
        """Yield the members of each key, with their extensions, and the file to read them from."""
        # The second reads headers alone, a key ahead: whether a picture follows in it.
        with self._open() as tar, self._open() as ahead:
            has_picture = (
                any(f".{_cut(x.name)[1]}" in PICTURE_SUFFIXES for x in members)
                for _, members in self._groups(ahead, Passed())
            )
            for _, members in self._groups(tar, passed):
                cut = _cut if next(has_picture) else _cut_last
                for _, sample in groupby(members, key=lambda x: cut(x.name)[0]):
                    yield tar, ((member, cut(member.name)[1]) for member in sample)

    def _groups(
        self, tar: tarfile.TarFile, passed: Passed
    ) -> Iterator[tuple[str, Iterator[tarfile.TarInfo]]]:
        def read() -> Iterator[tarfile.TarInfo]:
            for member in _members(tar, passed):
                parts = PurePosixPath(member.name).parts
                if not self._hidden and any(map(is_hidden, set(parts) - {".", ".."})):
                    passed.note("hidden", member.name)
                else:
                    yield member

        return groupby(read(), key=lambda member: _cut(member.name)[0])

    @contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        with self._errors(), tarfile.open(self._path) as tar:
            yield tar

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            # The lines after the first list the error of each kind of compression.
            reason = str(error).partition("\n")[0].rstrip(":")
            raise SourceError(f"{self._path}: the tar file cannot be read: {reason}") from error


class Table:
    """A Parquet table with a picture's encoded file in each row.

    `image_column` is a column of bytes, or of structs with a field `bytes` as
    Hugging Face's datasets write them; None takes the only such column.
    `label_column` holds the classes; None takes the column `label` where there
    is one.
    """

    def __init__(self, path: Path, *, image_column: str | None, label_column: str | None) -> None:
        self._path = path
        self._image_column = image_column
        self._label_column = label_column

    def items(self) -> Iterator[Found]:
        """Yield the pictures; a row without one is an empty picture, which cannot be read."""
        stamp = _stamp(self._path)
        rows = arrow.read_pictures(self._path, self._image_column, self._label_column)
        try:
            for number, (image, label) in enumerate(rows):
                yield Item(f"{self._path}#{number}", image, label, stamp)
        except (arrow.TableError, OSError) as error:
            raise SourceError(f"{self._path}: {error}") from error

    def count(self) -> int:
        """Return how many there are, from the file's footer."""
        try:
            return arrow.count_rows(self._path)
        except (arrow.TableError, OSError) as error:
            raise SourceError(f"{self._path}: {error}") from error


class Joined:
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def items(self) -> Iterator[Found]:
        """Yield the pictures."""
        for source in self._sources:
            yield from source.items()

    def count(self) -> int | None:
        """Return how many there are."""
        total = 0
        for source in self._sources:
            count = source.count()
            if count is None:
                return None
            total += count
        return total


def _file(path: Path) -> Found:
    """Return the picture that a user names by its path."""
    if not _may_never_end(path):
        return _item(path)
    message = _text(f"cannot read {path}: it is no plain file")
    return Unreadable(_written(path), "INVALID_ARGUMENT", message, "IMAGE_UNREADABLE")


def _item(path: Path) -> Item:
    return Item(_written(path), path, _text(path.parent.name), _stamp(path))


def _may_never_end(path: Path) -> bool:
    """Return whether a path is of a pipe, a device or a socket, which may block or never end.

    Not so for a folder, nor for a path whose state cannot be read: that fails later.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _written(path: Path) -> str:
    """Return a path as text from which it can be opened again."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return path.absolute().as_uri()
    return str(path)


def _read_back(text: str) -> Path:
    """Return the path of a line of a list."""
    if text.startswith(_FILE_URL):
        return Path(os.fsdecode(unquote_to_bytes(text.removeprefix("file://"))))
    return Path(text)


def file_of(name: str) -> Path | None:
    """Return the absolute path of the picture of that name; None where it has no file of its own.

    Those of a shard or a table have none.
    """
    path = _read_back(name).absolute()
    return path if path.is_file() else None


def _stamp(path: Path) -> str:
    """Return the size and the time of change of a file, empty where there is none."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{state.st_size} {state.st_mtime_ns}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _cut(name: str) -> tuple[str, str]:
    """Return the key of a member, and its extension in lower case: what follows the first dot."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _cut_last(name: str) -> tuple[str, str]:
    """Return the same for an extension that follows the last dot."""
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.rpartition(".")
    return f"{folder}{slash}{stem if dot else file}", extension.lower() if dot else ""


def _members(tar: tarfile.TarFile, passed: Passed) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        if member.isfile():
            yield member
        elif not member.isdir():
            passed.note(_NOT_PLAIN, member.name)
        # tarfile keeps every member, and has no public way to remove one.
        cast("Any", tar).members.clear()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    return b"" if content is None else content.read()


def _stripped(lines: BinaryIO) -> Iterator[str]:
    mark = lines.read(2)
    if mark in _UTF16:
        text = TextIOWrapper(lines, _UTF16[mark])
        try:
            yield from filter(str.strip, (line.rstrip("\n") for line in text))
        finally:
            text.detach()
        return
    # The mark may be of more than one line where there is none.
    for number, line in enumerate(chain((mark + lines.readline()).split(b"\n"), lines)):
        path = (line if number else line.removeprefix(BOM_UTF8)).rstrip(b"\r\n")
        if path.strip():
            yield os.fsdecode(path)


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
