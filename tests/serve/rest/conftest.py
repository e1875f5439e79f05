"""The application over a real engine, without a network."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import numpy as np
import pytest
import pytest_asyncio

from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.process import Process
from foveate_serve.rest.app import make_app
from foveate_serve.settings import Settings

Serve = Callable[..., Awaitable[httpx2.AsyncClient]]


@pytest_asyncio.fixture
async def serve(colours: Bundle) -> AsyncIterator[Serve]:
    """Return a function that serves the bundle of colours with settings, and returns a client."""
    async with AsyncExitStack() as stack:

        async def start(**settings: object) -> httpx2.AsyncClient:
            given = {"repository": colours.path.parents[1], "http_address": "127.0.0.1:0"}
            read = Settings(**{**given, **settings})
            process = Process(read)
            await process._engine.repository.open()
            stack.push_async_callback(process._engine.close)
            process._server.ready()
            transport = httpx2.ASGITransport(app=make_app(read, process._server.services))
            client = httpx2.AsyncClient(transport=transport, base_url="http://test")
            client.process = process
            return await stack.enter_async_context(client)

        yield start


@pytest_asyncio.fixture
async def client(serve: Serve) -> httpx2.AsyncClient:
    return await serve()


@pytest.fixture
def red() -> np.ndarray:
    """Return a picture that is red: uint8 [1, 8, 8, 3]."""
    pixels = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    return pixels


@pytest.fixture
def own_repository(tmp_path: Path, write_bundle: Callable[..., Path]) -> Path:
    """Return a repository that a test may change."""
    write_bundle()
    return tmp_path / "repository"
