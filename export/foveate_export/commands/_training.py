"""What the subcommands share that need torch."""

from collections.abc import Iterator
from contextlib import contextmanager

from foveate_export.errors import ExportError, UsageError
from foveate_train.errors import ArgumentsError, TrainError, UnknownClassifierError


@contextmanager
def training_errors() -> Iterator[None]:
    """Turn the errors of foveate_train into those of this distribution."""
    try:
        yield
    except (UnknownClassifierError, ArgumentsError) as error:
        raise UsageError(str(error)) from error
    except TrainError as error:
        raise ExportError(str(error)) from error
