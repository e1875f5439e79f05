"""What can go wrong, as one tree.

    TrainError
    ├── UnknownClassifierError   no classifier has this name
    ├── ArgumentsError           the classifier does not take these arguments
    ├── MissingPackageError      an optional distribution is not installed
    ├── WeightsError             weights cannot be had or do not fit
    │   ├── OtherClassesError    their head has another number of classes
    │   └── HeadlessError        they lack one layer, such as the head
    ├── CheckpointError          a checkpoint folder cannot be read or written
    ├── DataError                data cannot be had or is not what it should be
    ├── ResumeError              a run cannot go on from the state that is there
    └── SettingsError            a training setting is outside its limits

Every message is written for the person who typed the command.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class TrainError(Exception):
    """The base of every error that this distribution raises on purpose."""


class UnknownClassifierError(TrainError):
    """No classifier has this name; the message lists the nearest right ones."""


class ArgumentsError(TrainError):
    """An argument is unknown to the classifier or has a value it refuses."""


class MissingPackageError(TrainError):
    """An optional distribution is missing; the message holds the pip line."""


class WeightsError(TrainError):
    """Weights cannot be fetched or read, or do not fit the network."""


class OtherClassesError(WeightsError):
    """Weights whose head alone does not fit: `classes` of them, as the tensor `key` tells."""

    def __init__(self, message: str, classes: int, key: str) -> None:
        super().__init__(message)
        self.classes = classes
        self.key = key


class HeadlessError(WeightsError):
    """Weights, the tensors `state` by name, that lack nothing but one `layer`, such as the head.

    What is to be said of the file, as `foveate_train.weights.load` returns it, is `said`.
    """

    said = ""

    def __init__(self, message: str, layer: str, state: "dict[str, torch.Tensor]") -> None:
        super().__init__(
            f"{message}: it has no {layer}, so it is no trained classifier; foveate train finetune "
            "trains its head"
        )
        self.layer = layer
        self.state = state


class CheckpointError(TrainError):
    """A checkpoint cannot be read or written."""


class DataError(TrainError):
    """A data set cannot be fetched or its files are not the expected ones."""


class ResumeError(TrainError):
    """The state of a run is damaged, or is that of another run."""


class SettingsError(TrainError):
    """A training setting is outside its limits."""
