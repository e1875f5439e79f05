"""The graphs of one model: one for each set of outputs, and no more than a few of them."""

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Generic, TypeVar

from foveate_runtime.bundle.manifest import LOGITS_OUTPUT

T = TypeVar("T")

MOST = 4
"""That of plain requests, two others, and the one with every output. Each may
hold the weights again, in the order that its kernels want."""


class Graphs(Generic[T]):
    """Graphs that compute sets of outputs, each made by `make` at the first use of its set.

    Clients choose the sets, so no graph replaces another one: past `MOST` graphs, the one
    with all `outputs` computes any set. A graph is made once, also where several threads
    wait for it, and outside the lock, so that the others can be used meanwhile. May be
    used from several threads.
    """

    def __init__(self, make: Callable[[frozenset[str]], T], outputs: Collection[str]) -> None:
        self._make = make
        self._every = frozenset(outputs)
        self._made: dict[frozenset[str], Future[T]] = {}
        self._lock = threading.Lock()
        self.plain = self.get({LOGITS_OUTPUT})

    def get(self, outputs: Collection[str]) -> T:
        """Return what computes `outputs`, and perhaps others; raises what `make` raises."""
        with self._lock:
            wanted = self._chosen(frozenset(outputs))
            known = self._made.get(wanted)
            if known is None:
                made = self._made[wanted] = Future()
        if known is not None:
            return known.result()
        try:
            graph = self._make(wanted)
        except BaseException as error:
            with self._lock:
                del self._made[wanted]
            made.set_exception(error)
            raise
        made.set_result(graph)
        return graph

    def sets(self) -> list[frozenset[str]]:
        """Return the sets of outputs that have a graph, in the order of their first use."""
        with self._lock:
            return list(self._made)

    def clear(self) -> None:
        """Release the graphs."""
        self._made.clear()
        del self.plain

    def _chosen(self, wanted: frozenset[str]) -> frozenset[str]:
        kept = len(self._made.keys() | {self._every})
        return wanted if wanted in self._made or kept < MOST else self._every
