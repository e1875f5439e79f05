"""Accepts connections, as many as there are places and files for."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable

from foveate_serve.transports.http2.connection import Connection
from foveate_serve.transports.http2.places import Place, Places

BACKLOG = 1024

TLS_SECONDS = 20.0
"""The time in which a client must finish the handshake of TLS."""

_AT_ONCE = 64
"""The most connections that are accepted in one round of the event loop."""

_PAUSE_SECONDS = 0.1
"""The time for which no connection is accepted after the process had no file for one."""

_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """Listens on a bound socket until `close`.

    A client takes its place when it is accepted, before the handshake of TLS, which
    costs processor time and holds a file for up to `TLS_SECONDS`. asyncio's own server
    tells nothing of connections before that.
    """

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[Place], Connection],
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
        """Accept no more, and give up handshakes that have begun."""
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
