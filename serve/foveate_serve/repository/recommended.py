"""The backends and variants that `foveate bench --recommend` measured for a repository."""

import logging
from pathlib import Path

from foveate_runtime.backends.recommended import (
    RECOMMENDED_FILE,
    Recommended,
    RecommendedError,
    read_recommended,
)
from foveate_runtime.bundle.bundle import Bundle

logger = logging.getLogger(__name__)

_AGAIN = "measure again with: foveate bench --recommend --repository DIR --model"


class Recommendations:
    """The recommendations beside the models of `repository`, read at every load.

    What is logged of one is logged once, however many instances are loaded. Used
    from any thread.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._told: set[str] = set()

    def find(self, bundle: Bundle, device: str) -> Recommended | None:
        """Return what was measured for a bundle here, None where nothing was, or not here."""
        try:
            entry = read_recommended(self._repository).get(bundle.manifest.name)
        except RecommendedError as error:
            self._tell(logging.WARNING, f"the recommendations are ignored: {error}")
            return None
        if entry is None:
            return None
        reason = entry.mismatch(bundle, device)
        if reason:
            self._tell(
                logging.WARNING,
                f"{_named(bundle)}: its entry in {RECOMMENDED_FILE} does not count: {reason}; "
                f"{_AGAIN} {bundle.manifest.name}",
            )
            return None
        self._tell(
            logging.INFO,
            f"{_named(bundle)}: {entry.variant} on {entry.backend}, "
            f"as {RECOMMENDED_FILE} says of this machine",
        )
        return entry

    def refused(self, bundle: Bundle, error: Exception) -> None:
        """Log that what was recommended for a bundle cannot be loaded."""
        self._tell(
            logging.WARNING,
            f"{_named(bundle)}: what {RECOMMENDED_FILE} says cannot be loaded: {error}; "
            f"{_AGAIN} {bundle.manifest.name}",
        )

    def _tell(self, level: int, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.log(level, "%s", message)


def _named(bundle: Bundle) -> str:
    return f"the model {bundle.manifest.name}, version {bundle.manifest.version}"
