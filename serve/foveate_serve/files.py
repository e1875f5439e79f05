"""How many files, connections among them, the process may have open at once."""

import asyncio
import errno
import logging
import time
from typing import Any

try:
    import resource
except ModuleNotFoundError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_MOST = 1 << 20
"""Where the hard limit is higher, or is none: some libraries keep a table of so many entries."""

GRPC_SHARE, HTTP_SHARE = 0.625, 0.125
"""The parts of the open files that the connections of a port may take."""

_QUIET_SECONDS = 60.0


def raise_open_files() -> None:
    """Raise the soft limit of open files to the hard one; processes started later inherit it.

    The usual soft limit is 1,024 for the sake of programs that use select(2). A server
    that has reached it takes no connection, those of probes included.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError) as error:
            logger.warning("the limit of open files stays at %d: %s", soft, error)
            return
        soft = most
    logger.info("at most %d files and connections can be open", soft)


def connections_within(limit: int, *, share: float = GRPC_SHARE) -> int:
    """Return how many connections a port may hold: `limit`, or its share of the open files.

    What the ports leave is for probes, metrics, and the models that are loaded.
    """
    if resource is None:
        return limit
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limit if soft == resource.RLIM_INFINITY else max(1, min(limit, int(soft * share)))


class OneLine:
    """An exception handler of an event loop that logs open files at their limit in one line.

    asyncio describes every connection that it cannot take, hundreds of times a second.
    """

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle one error."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in {errno.EMFILE, errno.ENFILE}:
            loop.default_exception_handler(context)
        elif time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + _QUIET_SECONDS
            logger.error(
                "connections are not taken: %s; raise the hard limit (ulimit -Hn), "
                "or set max_connections and max_connection_idle",
                error.strerror,
            )
