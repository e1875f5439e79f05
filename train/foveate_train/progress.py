"""What a person sees of a run: how far it is, how fast, and how long it will take."""

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track

from foveate_train import distributed
from foveate_train.loop import Step

if TYPE_CHECKING:
    from foveate_train.run import Epoch

ItemT = TypeVar("ItemT")

_INTERVAL = 30.0
"""How many seconds pass between two lines within an epoch, where there is no terminal."""


class StepProgress(Progress):
    """Lines on standard error, and on a terminal a bar below them; a context manager.

    Without a terminal, a line stands for the bar every half minute.

    Of several processes, the first alone writes.

    Args:
        done: how many steps are done already.
        total: how many there are.
    """

    def __init__(self, *, done: int, total: int) -> None:
        console = Console(stderr=True, quiet=distributed.rank() != 0)
        super().__init__(
            TextColumn("{task.description}epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._title = ""
        self._said = time.monotonic()
        self._task = self.add_task("", epoch="", loss="", completed=done, total=total)

    def describe(self, title: str) -> None:
        """Set what stands before the bar and before the epochs."""
        self._title = f"{title}, "
        self.update(self._task, description=self._title)

    def step(self, step: Step) -> None:
        """Show a step. Its loss is read only where it is printed."""
        if not self.disable:
            self.update(self._task, advance=1, epoch=step.epoch, loss=f"{float(step.loss):.4f}")
        elif not self.console.quiet and time.monotonic() - self._said >= _INTERVAL:
            done = f"epoch {step.epoch}, step {step.number} of {step.total}"
            self._say(f"{self._title}{done}: loss {float(step.loss):.4f}")

    def epoch(
        self, epoch: "Epoch", epochs: int, images: int, metric: str = "test accuracy"
    ) -> None:
        """Write a line about one of so many epochs, each of so many images."""
        said = [] if epoch.accuracy is None else [f"{metric} {epoch.accuracy:.2%}"]
        if epoch.number:
            said = [f"loss {epoch.loss:.4f}", *said, f"{images / epoch.seconds:.0f} images/s"]
        elif not said:
            return
        line = f"{self._title}epoch {epoch.number}/{epochs}: {', '.join(said)}"
        self._say(line)

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self.console.print(line, highlight=False, soft_wrap=True)


def tracked(items: Sequence[ItemT], title: str) -> Iterable[ItemT]:
    """Give the items one by one; on a terminal, a bar on standard error says how far it is."""
    console = Console(stderr=True)
    return track(items, title, console=console, transient=True, disable=not console.is_terminal)
