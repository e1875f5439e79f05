"""`foveate visualize arithmetic`: convolution and pooling over a small matrix, step by step."""

import io
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch.nn import functional

from foveate_train.drawing import new_figure, saving
from foveate_train.errors import SettingsError
from foveate_train.options import As, Command
from foveate_train.progress import tracked
from foveate_train.visualize.options import OutOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OF_A_STRIP = 4
_CELL = 0.42
"""The side of a matrix's cell in inches."""
_MARKED, _DONE = "#ffd166", "#cfe8cf"
_LAST = 3
"""For how many steps the last frame stands."""


class ArithmeticOptions(OutOptions):
    """Draw convolution and pooling over a small matrix, step by step: the course's examples.

    EXAMPLE is window, channels, filters, stride, max-pooling or average-pooling; without, all are
    drawn. arithmetic-EXAMPLE.gif is the animation, arithmetic-EXAMPLE.png a strip of its frames,
    and arithmetic-EXAMPLE-result.npy holds [outputs, height, width].

        foveate visualize arithmetic window stride --out arithmetic
    """

    examples: Annotated[tuple[str, ...], As("EXAMPLE", names=("examples",), many=True)] = ()
    """The names of examples. Default: all"""
    form: Annotated[Literal["gif", "apng"], As(names=("--format",))] = "gif"
    """What the animation is written as; an APNG has all colours, and the ending .apng"""
    seconds: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    """How long a step is shown"""


class Example(NamedTuple):
    """A matrix and what goes over it.

    Attributes:
        picture: float32 [channels, height, width].
        kernels: float32 [outputs, channels, height, width]; for pooling None.
        biases: one an output; for pooling none.
        stride: of the windows.
        pooling: None for a convolution, whose windows are as large as its kernels; else
            windows are of stride x stride.
    """

    picture: torch.Tensor
    kernels: torch.Tensor | None = None
    biases: tuple[float, ...] = ()
    stride: int = 1
    pooling: Literal["max", "average"] | None = None

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of a window."""
        if self.kernels is None:
            return self.stride, self.stride
        return self.kernels.shape[2], self.kernels.shape[3]

    def result(self) -> torch.Tensor:
        """Return what the layer gives, float32 [outputs, height, width]."""
        if self.kernels is not None:
            biases = torch.tensor(self.biases, dtype=torch.float32)
            return functional.conv2d(self.picture[None], self.kernels, biases, self.stride)[0]
        pool = functional.max_pool2d if self.pooling == "max" else functional.avg_pool2d
        return pool(self.picture[None], self.stride)[0]


class Step(NamedTuple):
    """One window: of which output, its place in it, the window's first row and column, in words."""

    output: int
    row: int
    column: int
    top: int
    left: int
    said: str


def steps(example: Example) -> list[Step]:
    """Return the steps of an example, output by output, row by row."""
    result = example.result()
    height, width = example.window
    found = []
    for output, row, column in torch.cartesian_prod(*map(torch.arange, result.shape)).tolist():
        top, left = row * example.stride, column * example.stride
        seen = example.picture[:, top : top + height, left : left + width]
        value = f"{float(result[output, row, column]):g}"
        if example.kernels is None:
            shown = ", ".join(f"{each:g}" for each in seen[output].flatten().tolist())
            said = f"{example.pooling} of {shown} = {value}"
        else:
            pairs = zip(
                example.kernels[output].flatten().tolist(), seen.flatten().tolist(), strict=True
            )
            terms = [f"{_signed(weight)}·{_signed(pixel)}" for weight, pixel in pairs]
            said = f"{' + '.join([*terms, _signed(example.biases[output])])} = {value}"
        found.append(Step(output, row, column, top, left, said))
    return found


_BINARY = torch.tensor(
    [
        [1.0, 0, 0, 0, 0, 1],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 1, 0],
    ]
)[None]
_FILTERS = torch.tensor([[[[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]], [[[-1.0, 1, -1]] * 3]])
_DENSE = Example(_BINARY, _FILTERS, (0, 0))
_POOLED = torch.tensor([[[1.0, 3, 2, 4], [5, 7, 6, 8], [9, 2, 1, 0], [4, 1, 3, 8]]])

# The numbers are those of docs/studies/arithmetic, and a test compares the two.
EXAMPLES: dict[str, Example] = {
    "window": Example(
        torch.tensor([[[2.0, 4, 6], [8, 10, 12], [14, 16, 18]]]),
        torch.tensor([[[[1.0, 3], [5, 7]]]]),
        (5,),
    ),
    "channels": Example(
        torch.stack([torch.ones(2, 2), torch.full((2, 2), 2.0)]),
        torch.tensor([[3.0, 4], [1, 2]])[:, :, None, None].repeat(1, 1, 2, 2),
        (10, 5),
    ),
    "filters": _DENSE,
    "stride": _DENSE._replace(stride=2),
    "max-pooling": Example(_DENSE.result(), stride=2, pooling="max"),
    "average-pooling": Example(_POOLED, stride=2, pooling="average"),
}


def run(options: ArithmeticOptions) -> int:
    """Draw the examples; return 0.

    Raises:
        SettingsError: an example is unknown.
        TrainError: the disk refuses, or matplotlib is missing.
    """
    for name in options.examples:
        if name not in EXAMPLES:
            near = get_close_matches(name, EXAMPLES) or list(EXAMPLES)
            raise SettingsError(f"EXAMPLE {name}: there is none of this name; {', '.join(near)}")
    for name in dict.fromkeys(options.examples or EXAMPLES):
        _draw(options, name)
    return 0


def _draw(options: ArithmeticOptions, name: str) -> None:
    example, each = EXAMPLES[name], steps(EXAMPLES[name])
    frames = [_frame(example, each[: done + 1]) for done in tracked(range(len(each)), name)]
    chosen = torch.linspace(0, len(frames) - 1, min(_OF_A_STRIP, len(frames))).round().int()
    strip = _stacked([frames[number] for number in chosen.tolist()])
    result = example.result()
    options.write(
        {
            f"arithmetic-{name}.{options.form}": lambda file: _animate(
                frames, file, options.form, options.seconds
            ),
            f"arithmetic-{name}.png": lambda file: strip.save(file, optimize=True),
            f"arithmetic-{name}-result.npy": lambda file: np.save(file, result.numpy()),
        }
    )
    print(f"{name}: {result.tolist()}")


def _frame(example: Example, done: Sequence[Step]) -> Image.Image:
    """Draw the matrices after some steps, with the window of the last one marked."""
    now, result = done[-1], example.result()
    height, width = example.window
    kernels = None if example.kernels is None else example.kernels[now.output]
    stacks = {"input": example.picture, "kernel": kernels, "output": result}
    shown = {name: stack for name, stack in stacks.items() if stack is not None}
    tall = max(len(stack) * (stack.shape[1] + 1) for stack in shown.values())
    wide = sum(stack.shape[2] + 1.5 for stack in shown.values())
    wide = max(wide, 0.19 * max(len(step.said) for step in steps(example)))
    figure = new_figure(_CELL * (wide + 0.5), _CELL * (tall + 2.5))
    axes = figure.add_subplot()
    axes.set(xlim=(-0.25, wide + 0.25), ylim=(tall + 1, -1.25), aspect="equal")
    axes.axis("off")
    across = 0.0
    for name, stack in shown.items():
        axes.text(across, -0.35, name, fontsize=9)
        for number, matrix in enumerate(stack):
            below = number * (stack.shape[1] + 1)
            for row, column in torch.cartesian_prod(*map(torch.arange, matrix.shape)).tolist():
                colour, text = "white", f"{float(matrix[row, column]):g}"
                if name == "input":
                    inside = (
                        now.top <= row < now.top + height and now.left <= column < now.left + width
                    )
                    if inside and (example.kernels is not None or number == now.output):
                        colour = _MARKED
                elif name == "output":
                    place = (number, row, column)
                    if place == now[:3]:
                        colour = _MARKED
                    elif any(place == step[:3] for step in done):
                        colour = _DONE
                    else:
                        text = ""
                _cell(axes, across + column, below + row, text, colour)
        across += stack.shape[2] + 1.5
    axes.text(0, tall + 0.3, now.said, fontsize=9)
    return _drawn(figure)


def _cell(axes: "Axes", left: float, top: float, text: str, colour: str) -> None:
    axes.fill(
        [left, left + 1, left + 1, left],
        [top, top, top + 1, top + 1],
        facecolor=colour,
        edgecolor="0.4",
        linewidth=0.8,
    )
    axes.text(left + 0.5, top + 0.5, text, fontsize=9, ha="center", va="center")


def _drawn(figure: "Figure") -> Image.Image:
    kept = io.BytesIO()
    saving(figure)(kept)
    return Image.open(kept).convert("RGB")


def _animate(frames: Sequence[Image.Image], file: Path, form: str, seconds: float) -> None:
    milliseconds = round(1000 * seconds)
    if form == "gif":
        frames = [frame.quantize(64, dither=Image.Dither.NONE) for frame in frames]
    frames[0].save(
        file,
        "GIF" if form == "gif" else "PNG",
        save_all=True,
        append_images=frames[1:],
        duration=[*[milliseconds] * (len(frames) - 1), _LAST * milliseconds],
        loop=0,
    )


def _stacked(frames: Sequence[Image.Image]) -> Image.Image:
    """Lay frames of one size below each other."""
    width, height = frames[0].size
    strip = Image.new("RGB", (width, height * len(frames)), "white")
    for number, frame in enumerate(frames):
        strip.paste(frame, (0, number * height))
    return strip


def _signed(value: float) -> str:
    return f"{value:g}" if value >= 0 else f"({value:g})"


COMMAND = Command(name="arithmetic", options=ArithmeticOptions, run=run)
