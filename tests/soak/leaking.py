"""`foveate serve` with a planted leak: each request keeps memory, and every tenth a file.

It shows that the check of the soak sees a leak; nothing else runs it.
"""

import os
import sys
from pathlib import Path
from typing import Any

from foveate_serve.cli import main
from foveate_serve.engine.engine import Engine

KEPT_BYTES = 512 << 10

_kept: list[object] = []
_classify: Any = Engine.classify


def classify(self: Engine, *arguments: Any, **options: Any) -> Any:
    """Answer as ever, and forget to let go."""
    _kept.append(os.urandom(1024) * (KEPT_BYTES >> 10))
    if len(_kept) % 10 == 0:
        _kept.append(Path(os.devnull).open("rb"))  # noqa: SIM115 - that is the leak
    return _classify(self, *arguments, **options)


if __name__ == "__main__":
    Engine.classify = classify  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
