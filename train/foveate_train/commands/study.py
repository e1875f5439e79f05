"""`foveate train study`: repeat a study of the course, and write its page."""

from foveate_train.errors import SettingsError
from foveate_train.interruption import interruption
from foveate_train.options import Command
from foveate_train.settings import Settings, checked
from foveate_train.studies import STUDIES
from foveate_train.studies.options import StudyOptions

_CHANGED = ("epochs", "batch_size", "learning_rate")


def run(options: StudyOptions) -> int:
    """Run the study; 1 if it was interrupted.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    if len(set(options.seeds)) != len(options.seeds):
        raise SettingsError(f"--seeds {options.seeds}: one stands twice")
    for seed in options.seeds:
        checked(Settings, {**options.given, "seed": seed})
    with interruption() as stop:
        complete = STUDIES[options.study](options, stop)
    done = "done" if complete else "interrupted; the same command goes on"
    print(f"{done}: {options.folder / 'README.md'}")
    return 0 if complete else 1


COMMAND = Command(
    name="study",
    options=StudyOptions,
    run=run,
    settings=_CHANGED,
    defaults=dict.fromkeys(_CHANGED, "the study's own"),
)
