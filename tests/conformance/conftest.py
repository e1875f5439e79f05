"""The server that clients of other makes drive, with each transport."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import TRANSPORTS, served


@pytest.fixture(scope="session", params=TRANSPORTS)
def imagenet_server(request: pytest.FixtureRequest, imagenet_repository: Path) -> Iterator[str]:
    """Serve the ImageNet classifier; the address."""
    with served(imagenet_repository, "--transport", request.param) as address:
        yield address
