"""Binds addresses, and accepts connections, as many as there are places and files for."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Any

from foveate_serve.transports.places import Place, Places

BACKLOG = 1024

TLS_SECONDS = 20.0
"""The time in which a client must finish the handshake of TLS."""

_AT_ONCE = 64
"""The most connections that are accepted in one round of the event loop."""

_PAUSE_SECONDS = 0.1
"""The time for which no connection is accepted after the process had no file for one."""

_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


async def bind(address: str, *, share_port: bool = False) -> list[socket.socket]:
    """Return the sockets of HOST:PORT, all on one port; raises OSError.

    With `share_port` other processes may bind it as well.
    """
    host, _, port = address.rpartition(":")
    host, number = host.strip("[]"), int(port)
    if host == "::" and socket.has_dualstack_ipv6():
        # Every address, those of IPv4 as well, as with grpc.aio.
        every = socket.create_server(
            (host, number), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=share_port
        )
        return [_prompt(every)]
    # A name may have several addresses.
    found = await asyncio.get_running_loop().getaddrinfo(
        host, number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    bound: list[socket.socket] = []
    problems: list[OSError] = []
    places: dict[tuple[int, Any], None] = dict.fromkeys((place[0], place[4]) for place in found)
    for family, (at, _, *zone) in places:
        try:
            one = socket.create_server((at, number, *zone), family=family, reuse_port=share_port)
        except OSError as error:
            problems.append(error)
            continue
        bound.append(_prompt(one))
        number = one.getsockname()[1]
    for problem in problems:
        # An address that is not this machine's is left out, unless there is no other.
        if problem.errno == errno.EADDRINUSE or not bound:
            for one in bound:
                one.close()
            raise problem
    return bound


def _prompt(listening: socket.socket) -> socket.socket:
    """Have what is written to its connections sent at once, and return it.

    asyncio leaves Nagle's algorithm on for sockets that name no protocol, as these.
    """
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class _Handshake:
    """A connection until it is made: it is idle, and may be closed for another."""

    def __init__(self, task: asyncio.Task[None], loop: asyncio.AbstractEventLoop) -> None:
        self._task = task
        self._loop = loop
        self._since = loop.time()

    def idle_for(self) -> float:
        """Return the seconds since it was accepted."""
        return self._loop.time() - self._since

    def abort(self) -> None:
        """Close the connection."""
        self._task.cancel()


class Listener:
    """Listens on a bound socket until `close`.

    A client takes its place when it is accepted, before the handshake of TLS, which
    costs processor time and holds a file for up to `TLS_SECONDS`. asyncio's own server
    has no event for a connection before that.
    """

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[Place], asyncio.BaseProtocol],
        places: Places,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._socket = listening
        self._make = make
        self._places = places
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._shaking: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Accept no more, and cancel handshakes that have begun."""
        if self._socket.fileno() < 0:
            return
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for shaking in self._shaking:
            shaking.cancel()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                accepted, address = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._pause(error)
                return
            place = self._places.take(address[0] if isinstance(address, tuple) else "")
            if place is None:
                accepted.close()
                continue
            accepted.setblocking(False)
            shaking = self._loop.create_task(self._connect(accepted, place))
            place.connection = _Handshake(shaking, self._loop)
            self._shaking.add(shaking)
            shaking.add_done_callback(self._shaking.discard)

    async def _connect(self, accepted: socket.socket, place: Place) -> None:
        """Make the connection, after the handshake of TLS where there is one."""
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._make(place),
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else TLS_SECONDS,
            )
        except OSError:  # of TLS as well: the client's fault, or it is gone
            place.release()
        except BaseException:
            place.release()
            raise

    def _pause(self, error: OSError) -> None:
        """Accept nothing for a moment: the socket stays readable until there is a file for it."""
        self._loop.remove_reader(self._socket)
        self._paused = self._loop.call_later(_PAUSE_SECONDS, self._resume)
        self._loop.call_exception_handler({"message": "accept failed", "exception": error})

    def _resume(self) -> None:
        self._paused = None
        self._loop.add_reader(self._socket, self._accept)
