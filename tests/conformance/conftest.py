"""The server that clients of other makes drive, with each transport."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from ..conftest import TRANSPORTS, served

Address = Callable[[str], str]


@pytest.fixture(scope="session")
def address_of(imagenet_repository: Path) -> Iterator[Address]:
    """Return a function that gives the address of a transport's server, started at the first."""
    with ExitStack() as stack:

        @cache
        def address(transport: str) -> str:
            return stack.enter_context(served(imagenet_repository, "--transport", transport))

        yield address


@pytest.fixture(scope="session", params=TRANSPORTS)
def imagenet_server(request: pytest.FixtureRequest, address_of: Address) -> str:
    """Serve the ImageNet classifier; the address."""
    return address_of(request.param)
