"""TensorRT's two flavours, found at run time."""

import logging
from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from foveate_runtime.backends.base import BackendError

logger = logging.getLogger(__name__)

_REMEMBERED = 32


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One of the two modules that share TensorRT's interface.

    Attributes:
        name: the module, which is also the backend's name.
        title: what people call it.
        extra: the extra of foveate-runtime that installs it.
        portable: whether it builds for compute capabilities that are named,
            without a GPU. It then chooses its kernels when it runs and has no
            timing cache. Otherwise it builds for the GPU at hand.
    """

    name: str
    title: str
    extra: str
    portable: bool


TENSORRT = Flavour(name="tensorrt", title="TensorRT", extra="tensorrt", portable=False)
TENSORRT_RTX = Flavour(
    name="tensorrt_rtx", title="TensorRT-RTX", extra="tensorrt-rtx", portable=True
)
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, TENSORRT_RTX)}
"""The flavours by name, the preferred one first."""


class TensorRTError(Exception):
    """A failure, with TensorRT's own message."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """A flavour's module, and the logger that all of its objects in the process share."""

    flavour: Flavour
    module: ModuleType
    logger: Any
    errors: deque[str]

    @property
    def version(self) -> str:
        """The version of the module. Another one does not read the engines of this one."""
        return str(self.module.__version__)

    def cause(self) -> TensorRTError:
        """Return the last error that TensorRT logged, and clear the log."""
        last = " ".join(self.errors[-1].split()) if self.errors else "it did not say why"
        self.errors.clear()
        return TensorRTError(last)


@cache
def load_library(flavour: Flavour) -> Library:
    """Import the module of `flavour`; raises BackendError with the line that installs it."""
    try:
        module = import_module(flavour.name)
    except (ImportError, OSError) as error:
        raise BackendError(
            f'{flavour.title} cannot be imported: pip install "foveate-runtime[{flavour.extra}]"'
        ) from error
    errors: deque[str] = deque(maxlen=_REMEMBERED)
    return Library(
        flavour=flavour, module=module, logger=_make_logger(module, errors), errors=errors
    )


def _make_logger(module: Any, errors: deque[str]) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]
        """Keeps errors, for the message of a failure, and passes all on to Python's logging."""

        def __init__(self) -> None:
            # pybind11 needs a direct call of its constructor; super() does not reach it.
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                errors.append(message)
            logger.debug("%s: %s", severity.name, message)

    return Logger()
