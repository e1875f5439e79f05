"""What a person sees of a run: how far it is, how fast, and how long it will take."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from foveate_train.training import Step


class StepProgress:
    """A bar on a terminal, and nothing elsewhere; a context manager.

    Args:
        console: where to draw.
        done: how many steps are done already.
        total: how many there are.
    """

    def __init__(self, console: Console, *, done: int, total: int) -> None:
        self._bar = Progress(
            TextColumn("{task.description}epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", epoch="", loss="", completed=done, total=total)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def describe(self, title: str) -> None:
        """Set what stands before the bar."""
        self._bar.update(self._task, description=f"{title}: ")

    def step(self, step: Step) -> None:
        """Show a step. Its loss is read only where somebody sees it."""
        if not self._bar.disable:
            self._bar.update(
                self._task, advance=1, epoch=step.epoch, loss=f"{float(step.loss):.4f}"
            )
