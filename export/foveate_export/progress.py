"""How a step of the export tells that it runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Stage = Callable[[str], AbstractContextManager[object]]
"""Called with what is about to be done; the context lasts as long as that."""
