"""Guards against use after a fork: threads and connections do not survive it."""

import os
from typing import Generic, TypeVar

from foveate_client._exceptions import ForkedError

T = TypeVar("T")


class OfOneProcess(Generic[T]):
    """Holds a transport for the process that made it."""

    def __init__(self, transport: T) -> None:
        self._transport = transport
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this is the process that made it."""
        return self._process == os.getpid()

    @property
    def here(self) -> T:
        """The transport. Raises ForkedError in another process."""
        if not self.is_here:
            raise ForkedError
        return self._transport
