"""The page's server: bounds of what callers send, and headers that keep the browser here."""

import os
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from foveate_client import Client
from foveate_web.page import CSS, THEME, Page
from foveate_web.pictures import MAX_BYTES

MAX_BODY = MAX_BYTES + 2**20
"""Bytes of a request's body: a picture, and what stands around it."""

MAX_UPLOADS = 512 * 2**20
"""Bytes that the files of uploads may take before they are deleted."""

MAX_CONNECTIONS = 256

_HEADERS = {
    # Nothing is fetched from elsewhere, whatever Gradio's parts may name. Its templates are
    # compiled in the browser, which needs unsafe-eval.
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "object-src 'none'; base-uri 'self'; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


def serve(client: Client, address: str, listening: socket.socket) -> None:
    """Show the models of `client`, whose server is at `address`, until the process is stopped.

    Prints one line when the page can be opened.
    """
    with tempfile.TemporaryDirectory(prefix="foveate-web-") as folder, _files_in(folder):
        uploads = Path(folder)
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_middleware(Bounds, uploads=uploads)
        gr.mount_gradio_app(
            app,
            Page(client, address, uploads).blocks(),
            path="/",
            theme=THEME,
            css=CSS,
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=MAX_BYTES,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
        )
        config = uvicorn.Config(
            app,
            log_level="warning",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        # uvicorn ends well, then raises the signal anew: SIGTERM is no failure.
        signal.signal(signal.SIGTERM, lambda *_: None)
        _Server(config, f"foveate web on http://{shown}:{port}/").run(sockets=[listening])


class _Server(uvicorn.Server):
    """Prints a line when it answers."""

    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self._line, flush=True)


class Bounds:
    """Answers 413 to a body above MAX_BODY and 503 while uploads take too much room.

    ASGI middleware. `uploads` is the folder of their files.
    """

    def __init__(self, app: Any, uploads: Path) -> None:
        self._app = app
        self._uploads = uploads

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _stated(scope) > MAX_BODY:
            await _refuse(send, 413, f"the request's body is limited to {MAX_BODY} bytes")
            return
        if scope["path"].endswith("/upload") and _size(self._uploads) > MAX_UPLOADS:
            await _refuse(send, 503, "too many pictures were sent; try again in some minutes")
            return
        taken = 0

        async def bounded() -> _Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            # What states no length is cut off as if its sender had left.
            return {"type": "http.disconnect"} if taken > MAX_BODY else message

        async def marked(message: _Message) -> None:
            if message["type"] == "http.response.start":
                held = {name.lower() for name, _ in message.get("headers", ())}
                message["headers"] = [
                    *message.get("headers", ()),
                    *(pair for pair in _ENCODED if pair[0] not in held),
                ]
            await send(message)

        await self._app(scope, bounded, marked)


_ENCODED = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


def _stated(scope: _Message) -> int:
    """Return the length of the body that the request states, 0 where it states none."""
    stated = dict(scope["headers"]).get(b"content-length", b"0")
    return int(stated) if stated.isdigit() else 0


def _size(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # Gradio deletes them meanwhile
            continue
    return total


async def _refuse(send: _Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_ENCODED]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


@contextmanager
def _files_in(folder: str) -> Iterator[None]:
    """Have Gradio keep its files in `folder`."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
