"""What a comparison measured, as `results.json` holds it."""

from pydantic import BaseModel, ConfigDict

from foveate_train.run import Epoch


class Entry(BaseModel):
    """One variant trained with one seed; `epochs` are those that are done."""

    model_config = ConfigDict(extra="forbid")

    variant: str
    seed: int
    epochs: list[Epoch]


class Results(BaseModel):
    """A study's results with all that is needed to repeat them.

    `settings` are those of every run but for the seed; `precision` is what the
    networks computed in; `gradients` holds, by variant, the size of the gradient in each
    convolution before the first step, with the first seed; `machine` and `versions` are
    those of the last process.
    """

    model_config = ConfigDict(extra="forbid")

    study: str
    settings: dict[str, str | int | float | bool | None]
    precision: str
    training_images: int
    test_images: int
    data_digest: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    gradients: dict[str, list[float]]
    runs: list[Entry]

    def accuracies(self, variant: str, epoch: int) -> list[float]:
        """Return the test accuracies, 0 to 1, of a variant after an epoch, one a seed."""
        return [
            run.epochs[epoch - 1].accuracy or 0.0
            for run in self.runs
            if run.variant == variant and len(run.epochs) >= epoch
        ]
