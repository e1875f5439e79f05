"""The interface of a backend."""

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    FEATURES_PREFIX,
    IMAGE_INPUT,
    LOGITS_OUTPUT,
    Manifest,
)

Array = NDArray[Any]

_GPU = re.compile(r"cuda(?::([0-9]{1,3}))?")


class BareEngine(Protocol):
    """Runs graphs that are in no bundle, to find out what an engine can do."""

    def __call__(self, model: bytes, *, threads: int) -> Callable[[Array], Array]:
        """Load an ONNX graph of one input and one output, and return the function that runs it."""
        ...


class BackendError(Exception):
    """An engine that is missing, or that cannot load or run a graph."""


def gpu_index(device: str) -> int | None:
    """Return the index of the GPU called `cuda` or `cuda:INDEX`, None for any other name."""
    match = _GPU.fullmatch(device)
    return None if match is None else int(match[1] or 0)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """The type and the shape of one tensor; None is a free dimension."""

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def accepts(self, array: Array) -> bool:
        """Return whether `array` has this type and shape."""
        if array.dtype != self.dtype or len(array.shape) != len(self.shape):
            return False
        # A loop, because every run comes here three times: a generator takes longer.
        for want, have in zip(self.shape, array.shape, strict=True):
            if want is not None and want != have:
                return False
        return True

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('*' if d is None else str(d) for d in self.shape)}]"


def graph_inputs(manifest: Manifest) -> dict[str, TensorSpec]:
    """Return the inputs that the graph contract gives a bundle, by name."""
    spec = manifest.input
    inputs = {
        IMAGE_INPUT: TensorSpec(
            dtype=np.dtype(np.uint8), shape=(None, spec.height, spec.width, spec.channels)
        )
    }
    if manifest.cams:
        inputs[CLASS_IDS_INPUT] = TensorSpec(dtype=np.dtype(np.int64), shape=(None, None))
    return inputs


def graph_outputs(manifest: Manifest) -> dict[str, TensorSpec]:
    """Return the outputs that the graph contract gives a bundle, by name."""
    single = np.dtype(np.float32)
    outputs = {LOGITS_OUTPUT: TensorSpec(dtype=single, shape=(None, manifest.classes))}
    for cam in manifest.cams:
        outputs[CAM_PREFIX + cam.method] = TensorSpec(
            dtype=single, shape=(None, None, cam.height, cam.width)
        )
    for layer in manifest.features:
        outputs[FEATURES_PREFIX + layer.layer] = TensorSpec(
            dtype=single, shape=(None, layer.channels, layer.height, layer.width)
        )
    return outputs


def with_classes(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the inputs for a graph that takes classes, of which `inputs` may have none.

    The graph may have more outputs than those that are fetched, and maps among them.
    """
    if CLASS_IDS_INPUT in inputs:
        return dict(inputs)
    best = np.full((len(inputs[IMAGE_INPUT]), 1), -1, dtype=np.int64)
    return {**inputs, CLASS_IDS_INPUT: best}


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """What one operator of a graph took over several runs.

    An engine merges nodes, so `name` and `operator`, its type, are the engine's.
    """

    name: str
    operator: str
    calls: int
    seconds: float


class Runner(ABC):
    """A variant loaded on a backend and a device.

    A subclass loads the graph when it is made, raising BackendError, and
    implements `_run`, and with several lanes `_run_on_share`.

    Attributes:
        threads: the threads of one run; 0 is as many as the engine finds cores.
        lanes: how many runs the engine takes at one time, from as many threads.
        image_shape: (height, width, channels).
        inputs, outputs: the tensors of the graph contract, by name.
        build_seconds: what building engines from the graph has taken so far, in
            this process or when they were put into the bundle. None where
            nothing is built.
        bounded: whether a run's time follows from its batch alone: on the
            processor, and by a graph without a loop.
    """

    backend: ClassVar[str]
    lanes = 1

    def __init__(self, bundle: Bundle, *, variant: str, device: str, threads: int) -> None:
        self.variant = variant
        self.device = device
        self.threads = threads
        spec = bundle.manifest.input
        self.image_shape = (spec.height, spec.width, spec.channels)
        self.inputs = graph_inputs(bundle.manifest)
        self.outputs = graph_outputs(bundle.manifest)
        self.build_seconds: float | None = None
        self.bounded = False
        self._started: dict[int, float] = {}

    @property
    def running_since(self) -> float | None:
        """When the oldest run under way began, by `time.monotonic`; None without one."""
        return min(self._started.copy().values(), default=None)

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], *, share_cores: bool = False
    ) -> dict[str, Array]:
        """Run the graph on a batch and return the outputs named, and only those.

        `inputs` holds `image`, uint8 [N, height, width, channels], and
        `class_ids`, int64 [N, K], where an output `cam.*` is fetched. With
        `share_cores` other lanes are busy: this run then uses its share of the cores
        instead of all of them. Raises ValueError for inputs or
        outputs that the contract does not have, and BackendError where the
        engine fails or breaks the contract: where an output is of another type or
        shape, or not of as many pictures and classes as the inputs.
        """
        self._check(inputs, outputs)
        run = self._run_on_share if share_cores else self._run
        self._started[threading.get_ident()] = time.monotonic()
        try:
            results = run(inputs, outputs)
        finally:
            del self._started[threading.get_ident()]
        for name in outputs:
            self._check_result(name, results[name], inputs)
        return results

    def profile(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], *, warm_up: int, runs: int
    ) -> list[OperatorTime]:
        """Return what each operator took in `runs` runs, which follow on `warm_up` others.

        An engine that measures only if this is set before the load loads the graph
        once more. Arguments and errors as in `run`; BackendError also where the
        backend does not measure operators.
        """
        self._check(inputs, outputs)
        return self._profile(inputs, outputs, warm_up, runs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def trim(self) -> None:  # noqa: B027 - few engines have anything to give
        """Give back what only large batches need; the next of them takes it again.

        For engines that keep the memory of their largest batch. Raises BackendError.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the engine; the runner cannot be used afterwards."""

    @abstractmethod
    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run checked inputs; raises BackendError."""

    def _run_on_share(
        self, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        """Run checked inputs on a share of the cores; raises BackendError."""
        return self._run(inputs, outputs)

    def _profile(
        self,
        inputs: Mapping[str, Array],  # noqa: ARG002 - for those that can
        outputs: Sequence[str],  # noqa: ARG002
        warm_up: int,  # noqa: ARG002
        runs: int,  # noqa: ARG002
    ) -> list[OperatorTime]:
        """Profile checked inputs; raises BackendError."""
        raise BackendError(f"the backend {self.backend!r} does not tell what its operators take")

    def _require_names(self, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """Compare the inputs and outputs of a graph with the contract; raises BackendError.

        An input more would have no value, of which some engines make zeros.
        """
        inputs, outputs = set(inputs), set(outputs)
        for kind, missing in (
            ("input", self.inputs.keys() - inputs),
            ("output", self.outputs.keys() - outputs),
        ):
            if missing:
                raise BackendError(
                    f"the graph has no {kind} {min(missing)!r}, which the manifest names"
                )
        if unknown := inputs - {IMAGE_INPUT, CLASS_IDS_INPUT}:
            raise BackendError(
                f"the graph has an input {min(unknown)!r}; "
                f"it may have {IMAGE_INPUT!r} and {CLASS_IDS_INPUT!r}"
            )

    def _check_result(self, name: str, result: Array, inputs: Mapping[str, Array]) -> None:
        explains = name.startswith(CAM_PREFIX)
        counts = inputs[CLASS_IDS_INPUT].shape if explains else inputs[IMAGE_INPUT].shape[:1]
        if not self.outputs[name].accepts(result):
            wanted = f"and the manifest says {self.outputs[name]}"
        elif result.shape[: len(counts)] != counts:
            wanted = f"for {counts[0]} pictures" + (f" of {counts[1]} classes" if explains else "")
        else:
            return
        raise BackendError(
            f"the graph gives {name} as {result.dtype}{list(result.shape)}, {wanted}"
        )

    def _check(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> None:
        if not outputs:
            raise ValueError("no output is wanted")
        wanted = {IMAGE_INPUT}
        for name in outputs:
            if name not in self.outputs:
                raise ValueError(f"no output {name!r}; there are {sorted(self.outputs)}")
            if name.startswith(CAM_PREFIX):
                wanted.add(CLASS_IDS_INPUT)
        if inputs.keys() != wanted:
            raise ValueError(f"inputs {sorted(inputs)}; these outputs need {sorted(wanted)}")
        for name, array in inputs.items():
            if not self.inputs[name].accepts(array):
                raise ValueError(
                    f"{name} is {array.dtype}{list(array.shape)}; "
                    f"the graph takes {self.inputs[name]}"
                )
        if len(set(map(len, inputs.values()))) != 1:
            raise ValueError("the inputs differ in their first dimension")
