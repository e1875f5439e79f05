"""A repository at a URL, served from its mirror on this machine."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from foveate_runtime.remote.location import Location
from foveate_runtime.remote.mirror import Mirror, cache_folder

logger = logging.getLogger(__name__)


@contextmanager
def local_folder(
    repository: Path | str,
    labels: Mapping[str, Mapping[str, int]],
    *,
    every_version: bool = False,
    interval: float | None = None,
) -> Iterator[Path]:
    """Yield the folder of a repository; that of its mirror where it is at a URL.

    Args:
        repository: a folder, or a URL of `foveate_runtime.remote.location`.
        labels: the versions, by model and label, that are fetched beside the newest ones.
        every_version: whether all versions are fetched.
        interval: the seconds between two looks at the URL; None looks once.

    Raises:
        foveate_runtime.remote.store.RemoteError: the URL cannot be read, and nothing of it
            was fetched before.
    """
    if isinstance(repository, Path):
        yield repository
        return

    def choose(model: str, versions: Sequence[int]) -> Iterable[int]:
        if every_version:
            return versions
        return {max(versions), *labels.get(model, {}).values()}

    location = Location.parse(repository)
    mirror = Mirror(location, cache_folder(location), choose, _log_fetched)
    folder = mirror.open(_warn)
    with nullcontext() if interval is None else mirror.following(interval, _warn):
        yield folder


def _warn(problem: str) -> None:
    logger.warning("repository: %s", problem)


def _log_fetched(what: str, done: int, total: int) -> None:
    if done == total:
        logger.info("fetched %s, %.1f MB", what, total / 1e6)
