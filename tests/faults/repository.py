"""Files of the repository that are cut, swapped, deleted or made unreadable while they serve."""

import os
from collections.abc import Callable

from ..waiting import wait_until
from .bench import Bench, Seen, seen

POLLING = ("--repository-mode", "poll", "--poll-interval", "0.2")
_SCANS_SECONDS = 2.0
"""Some ten scans of the folder."""


_BY_MODE = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
"""Has root's processes obey the modes of files."""


def _while_serving(
    bench: Bench, break_: Callable[[], None], note: str, prefix: tuple[str, ...] = ()
) -> Seen:
    """Break files under a server that polls, and go on asking for some scans of the folder."""
    with (
        bench.serving(*POLLING, prefix=prefix) as server,
        bench.asking(server.address) as honest,
    ):
        honest.breaks()
        break_()
        honest.hold(_SCANS_SECONDS)
        honest.settle()
        return seen(honest, note, allowed=frozenset())


def truncated_file(bench: Bench) -> Seen:
    """the graph's file of what serves, cut to half"""
    path = bench.bundle / "model.onnx"
    return _while_serving(
        bench, lambda: os.truncate(path, path.stat().st_size // 2), "what is loaded serves on"
    )


def deleted_bundle(bench: Bench) -> Seen:
    """the manifest of what serves, deleted"""
    return _while_serving(
        bench, (bench.bundle / "manifest.json").unlink, "what is loaded serves on"
    )


def unreadable_folder(bench: Bench) -> Seen:
    """the model's folder, made unreadable"""
    folder = bench.bundle.parent
    return _while_serving(
        bench, lambda: folder.chmod(0), "what is loaded serves on", prefix=_BY_MODE
    )


def swapped_files(bench: Bench) -> Seen:
    """a new version whose graph is not the one that its manifest lists"""

    def add() -> None:
        graph = (bench.bundle / "model.onnx").read_bytes()
        bench.add_version("2", {"model.onnx": graph})
        # After the digest was written.
        (bench.bundle.parent / "2/model.onnx").write_bytes(graph[:-1] + b"\0")

    return _while_serving(bench, add, "it is refused by its digest; the old version serves")


def half_written_version(bench: Bench) -> Seen:
    """a new version without most of its files"""

    def add() -> None:
        path = bench.bundle.parent / "2"
        path.mkdir()
        (path / "manifest.json").write_bytes((bench.bundle / "manifest.json").read_bytes()[:100])

    return _while_serving(bench, add, "it is not loaded; the old version serves")


def good_version(bench: Bench) -> Seen:
    """nothing: a good new version takes the place of the old one"""
    with bench.serving(*POLLING) as server, bench.asking(server.address) as honest:
        honest.breaks()
        bench.add_version("2", {})
        wait_until(lambda: honest.version() == "2")
        honest.settle()
        return seen(honest, "no call fails", allowed=frozenset())


FAULTS = (
    truncated_file,
    deleted_bundle,
    unreadable_folder,
    swapped_files,
    half_written_version,
    good_version,
)
