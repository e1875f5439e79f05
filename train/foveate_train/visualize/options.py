"""The options of every drawing: which classifier, which pictures, and which folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field

from foveate_train.drawing import saving
from foveate_train.errors import TrainError
from foveate_train.options import As, MachineOptions
from foveate_train.visualize.subject import Picture, Subject, digits, photograph

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class VisualizeOptions(MachineOptions):
    """The options of every kind."""

    model: Annotated[str, As("MODEL", names=("model",))]
    """A classifier, such as package:efficientnet_lite0, or the folder of a checkpoint"""
    out: Path
    """The folder of the pictures (.png) and of their values (.npy)"""
    argument: Annotated[tuple[str, ...], As("NAME=VALUE")] = ()
    """An argument of the classifier, such as pool=false; may be repeated"""
    weights: Annotated[str | None, As("FILE")] = None
    """The weights, where they are not the classifier's own: a file, or random:SEED"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """All random draws follow from it"""

    def subject(self) -> Subject:
        """Return the classifier, on the device, with the seed set.

        Raises:
            TrainError: it cannot be had, as its subclass says.
        """
        device = self.use_machine()
        torch.manual_seed(self.seed)
        return Subject.of(self.model, self.weights, self.argument, device)

    def keep(self, name: str, figure: "Figure", **values: torch.Tensor) -> None:
        """Write NAME.png and NAME-VALUE.npy for each value, and print where.

        Raises:
            TrainError: the disk refuses.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            saving(figure)(self.out / f"{name}.png")
            print(self.out / f"{name}.png")
            for key, value in values.items():
                file = self.out / f"{name}-{key}.npy"
                np.save(file, value.detach().cpu().numpy())
                print(file)
        except OSError as error:
            raise TrainError(f"{self.out}: cannot be written ({error.strerror})") from error


class PictureOptions(VisualizeOptions):
    """The options of what looks at pictures."""

    images: Annotated[tuple[Path, ...], As("IMAGE", names=("images",), many=True)] = ()
    """Pictures. A classifier of digits needs none: one test picture of MNIST a class"""
    data: Path | None = None
    """A folder with the IDX files of MNIST"""

    def pictures(self, subject: Subject) -> list[Picture]:
        """Return the pictures asked for.

        Raises:
            SettingsError: there are none, or one is too small.
            DataError: one cannot be read.
        """
        if not self.images:
            return digits(subject, self.data)
        found = [photograph(file, subject.classifier.input) for file in self.images]
        if len({picture.name for picture in found}) == len(found):
            return found
        # Of files of one name in several folders, none takes the place of another's.
        return [
            picture._replace(name=f"{number}-{picture.name}")
            for number, picture in enumerate(found, 1)
        ]
