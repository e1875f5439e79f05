"""The studies of the course, run again: one module each, and what they share."""

from collections.abc import Callable, Mapping
from functools import partial
from threading import Event

from foveate_train.studies import (
    arithmetic,
    classifiers,
    features,
    filters,
    go,
    normalisation,
    patches,
    residual,
    runner,
    speech,
)
from foveate_train.studies.options import StudyOptions

STUDIES: Mapping[str, Callable[[StudyOptions, Event], bool]] = {
    "normalisation": partial(runner.run, normalisation.STUDY),
    "residual": partial(runner.run, residual.STUDY),
    features.NAME: features.run,
    filters.NAME: filters.run,
    patches.NAME: patches.run,
    go.NAME: go.run,
    speech.NAME: speech.run,
    arithmetic.NAME: arithmetic.run,
    classifiers.NAME: classifiers.run,
}
"""What runs each study until the event is set, and returns whether it is complete, by name."""
