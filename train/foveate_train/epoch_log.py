"""A TensorBoard log of a run's epochs; TensorBoard is an extra."""

from pathlib import Path
from types import TracebackType
from typing import Self

from foveate_train.errors import MissingPackageError
from foveate_train.fitting import Epoch


class EpochLog:
    """Writes each epoch's loss and accuracy for TensorBoard; a context manager.

    Args:
        folder: where to write.

    Raises:
        MissingPackageError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  an extra
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                'a log needs TensorBoard: pip install "foveate-train[tensorboard]"'
            ) from error
        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Self:
        """Begin to log."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is not written yet."""
        self._writer.close()

    def write(self, epoch: Epoch, metric: str) -> None:
        """Log one epoch; its accuracy is called `metric`."""
        self._writer.add_scalar("loss/train", epoch.loss, epoch.number)
        self._writer.add_scalar("seconds", epoch.seconds, epoch.number)
        if epoch.accuracy is not None:
            self._writer.add_scalar(f"accuracy/{metric}", epoch.accuracy, epoch.number)
