"""The options of every drawing: which classifier, which pictures, and which folder."""

from collections.abc import Callable, Mapping
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


class OutOptions(MachineOptions):
    """The options of whatever writes pictures."""

    out: Path
    """The folder of the pictures (.png) and of their values (.npy)"""

    def keep(self, name: str, figure: "Figure", **values: torch.Tensor) -> None:
        """Write NAME.png and NAME-VALUE.npy for each value, and print where.

        Raises:
            TrainError: the disk refuses.
        """
        arrays = {
            f"{name}-{key}.npy": lambda file, value=value: np.save(
                file, value.detach().cpu().numpy()
            )
            for key, value in values.items()
        }
        self.write({f"{name}.png": saving(figure), **arrays})

    def write(self, files: Mapping[str, Callable[[Path], object]]) -> None:
        """Have each file written by its function, and print where.

        Raises:
            TrainError: the disk refuses.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            for name, write in files.items():
                write(self.out / name)
                print(self.out / name)
        except OSError as error:
            raise TrainError(f"{self.out}: cannot be written ({error.strerror})") from error


class VisualizeOptions(OutOptions):
    """The options of every kind that looks into a classifier."""

    model: Annotated[str, As("MODEL", names=("model",))]
    """A classifier, such as package:efficientnet_lite0, or the folder of a checkpoint"""
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


class PictureOptions(VisualizeOptions):
    """The options of what looks at pictures."""

    images: Annotated[tuple[Path, ...], As("IMAGE", names=("images",), many=True)] = ()
    """Pictures. A classifier of digits needs none: one test picture of MNIST a class"""
    data: Path | None = None
    """A folder with the IDX files of MNIST"""

    def pictures(self, subject: Subject, enlarged: float = 1.0) -> list[Picture]:
        """Return the pictures asked for, so many times as large as the network takes them.

        Raises:
            SettingsError: there are none, or one is too small.
            DataError: one cannot be read.
        """
        if not self.images:
            return digits(subject, self.data, enlarged)
        found = [photograph(file, subject.classifier.input, enlarged) for file in self.images]
        if len({picture.name for picture in found}) == len(found):
            return found
        # Of files of one name in several folders, none takes the place of another's.
        return [
            picture._replace(name=f"{number}-{picture.name}")
            for number, picture in enumerate(found, 1)
        ]
