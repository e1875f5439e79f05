"""Times the nodes of a graph that torch runs."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from foveate_runtime.backends.base import OperatorTime
from foveate_runtime.backends.torch.graph import Program
from foveate_runtime.backends.torch.operators import Result


class Stopwatch:
    """Times each step of a program: `program` is the same one, watched.

    A GPU is waited for after every step, so that its time is that step's.
    """

    def __init__(self, program: Program, device: torch.device) -> None:
        self._steps = program.steps
        self._device = device
        self._seconds = [0.0] * len(program.steps)
        self._calls = [0] * len(program.steps)
        self.program = replace(
            program,
            steps=tuple(
                replace(step, call=partial(self._time, index, step.call))
                for index, step in enumerate(program.steps)
            ),
        )

    def times(self) -> list[OperatorTime]:
        """Return what each node has taken."""
        return [
            OperatorTime(name=step.name, operator=step.operator, calls=calls, seconds=seconds)
            for step, calls, seconds in zip(self._steps, self._calls, self._seconds, strict=True)
        ]

    def _time(self, index: int, call: Callable[..., Result], *inputs: Tensor | None) -> Result:
        started = time.perf_counter()
        result = call(*inputs)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._seconds[index] += time.perf_counter() - started
        self._calls[index] += 1
        return result
