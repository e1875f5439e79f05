"""What takes long to make is made once for all the processes that share the tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `name` of this run, which the process that needs it first lets `make` fill.

    Tests only read it: others have the same. What `make` raises fails that process alone, and
    the next one that needs the folder tries again.
    """
    base = factory.getbasetemp()
    # A process of pytest-xdist has a folder of its own within that of the run.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "once" / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            being_made = factory.mktemp(name)
            make(being_made)
            being_made.rename(folder)
    return folder
