"""Runs graphs in ONNX Runtime."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import onnxruntime

from foveate_runtime.backends.base import (
    Array,
    BackendError,
    OperatorTime,
    Runner,
    with_classes,
)
from foveate_runtime.backends.graphs import Graphs
from foveate_runtime.backends.integers import in_integers
from foveate_runtime.backends.onnxruntime import profiling, providers
from foveate_runtime.backends.onnxruntime.pruning import OnnxFile
from foveate_runtime.backends.onnxruntime.session import ENGINE_ERRORS, leave_to_floats
from foveate_runtime.backends.onnxruntime.sharing import SharedWeights, nameless_file
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import (
    CLASS_IDS_INPUT,
    FEATURES_PREFIX,
    IMAGE_INPUT,
    LOGITS_OUTPUT,
)
from foveate_runtime.cores import count_cores

# `OnnxFile` raises ValueError for a node that cannot be read.
_ERRORS: tuple[type[Exception], ...] = (ValueError, *ENGINE_ERRORS)


@cache
def _share_arena() -> None:
    """Have all sessions of the process take the memory of their runs from one arena.

    With an arena each, every session would keep the memory of its largest batch. The
    arena grows by the size of each request: doubling could reserve twice as much.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    same_as_requested = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator(memory, same_as_requested)


@dataclass(frozen=True, slots=True)
class _Sessions:
    """The same graph, for a run `alone` and for one that shares the cores with others."""

    alone: Any
    shared: Any


class OnnxRuntimeRunner(Runner):
    """A graph in ONNX Runtime, with sessions for sets of outputs.

    A session computes its whole graph at every run, so each has only what leads
    to its outputs: a plain request computes no more than the logits. Feature maps
    are computed in any case and cost a copy: all sets of them share a graph.

    On a processor a run takes all threads when it is alone, and one thread when
    other runs share the cores: the threads of one run wait for each other at every
    node, and longer where decoders take their cores. All sessions there have the
    weights of convolutions in common.
    """

    backend: ClassVar[str] = "onnxruntime"
    tensorrt: ClassVar[bool] = False

    def __init__(self, bundle: Bundle, *, variant: str, device: str, threads: int) -> None:
        super().__init__(bundle, variant=variant, device=device, threads=threads)
        self._providers = providers.choose(device, tensorrt=self.tensorrt)
        try:
            self._file = OnnxFile(bundle.file(variant))
        except (OSError, ValueError) as error:
            raise BackendError(f"ONNX Runtime cannot load the variant {variant!r}") from error
        self._require_names(self._file.inputs, self._file.outputs)
        if device == "cpu":
            self.lanes = threads or count_cores()
            self.bounded = self._file.straight
        self._in_integers = in_integers(bundle.manifest.variant(variant))
        self._weights = SharedWeights()
        self._graphs = Graphs(self._load, self.outputs)

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return self._fetch(self._graphs.get(self._computed(outputs)).alone, inputs, outputs)

    def _run_on_share(
        self, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        return self._fetch(self._graphs.get(self._computed(outputs)).shared, inputs, outputs)

    def _fetch(
        self, session: Any, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        try:
            results = session.run(outputs, self._feed(session, inputs))
        except _ERRORS as error:
            raise BackendError("ONNX Runtime failed to run the graph") from error
        return dict(zip(outputs, results, strict=True))

    def _profile(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], warm_up: int, runs: int
    ) -> list[OperatorTime]:
        with TemporaryDirectory(prefix="foveate-profile-") as folder:
            options = self._options(self.threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "run")
            try:
                session = self._session(self._file.prune(self._computed(outputs)), options)
                feed = self._feed(session, inputs)
                for _ in range(warm_up + runs):
                    session.run(outputs, feed)
            except _ERRORS as error:
                raise BackendError("ONNX Runtime failed to run the graph") from error
            return profiling.read(Path(session.end_profiling()), warm_up=warm_up)

    def trim(self) -> None:
        """Free the arena's memory beyond the need of one picture."""
        if self.device != "cpu":
            return
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        black = np.zeros((1, *self.image_shape), dtype=np.uint8)
        try:
            session = self._graphs.plain.alone
            session.run([LOGITS_OUTPUT], {IMAGE_INPUT: black}, options)
        except _ERRORS as error:
            raise BackendError("ONNX Runtime failed to run the graph") from error

    def close(self) -> None:
        """Release the sessions and their memory."""
        self._graphs.clear()
        del self._weights
        del self._file

    @staticmethod
    def _feed(session: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        # A map may not depend on the classes; then its graph has no such input.
        names = [node.name for node in session.get_inputs()]
        fed = with_classes(inputs) if CLASS_IDS_INPUT in names else inputs
        return {name: fed[name] for name in names}

    def _computed(self, outputs: Collection[str]) -> frozenset[str]:
        """Return what a session for `outputs` computes: with one feature map, all of them."""
        computed = {LOGITS_OUTPUT, *outputs}
        if len(computed) > 1 and any(name.startswith(FEATURES_PREFIX) for name in outputs):
            computed.update(name for name in self.outputs if name.startswith(FEATURES_PREFIX))
        return frozenset(computed)

    def _load(self, outputs: Collection[str]) -> _Sessions:
        """Load what computes `outputs`; raises BackendError."""
        try:
            return self._sessions(self._file.prune(outputs))
        except _ERRORS as error:
            raise BackendError(f"ONNX Runtime cannot load the variant {self.variant!r}") from error

    def _sessions(self, graph: bytes) -> _Sessions:
        if self.device != "cpu":
            session = self._session(graph, self._options(self.threads))
            return _Sessions(alone=session, shared=session)
        with nameless_file() as optimised:
            options = self._options(1)
            options.optimized_model_filepath = str(optimised)
            self._session(graph, options)
            weights = self._weights.adopt(optimised)

            def sharing(threads: int) -> Any:
                options = self._options(threads)
                options.graph_optimization_level = (
                    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
                )
                for name, value in weights.items():
                    options.add_initializer(name, value)
                return self._session(str(optimised), options)

            return _Sessions(alone=sharing(self.threads), shared=sharing(1))

    def _options(self, threads: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors; warnings are about optimisations not made
        # A thread that spins takes its core from the decoders.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A block for a whole run, another for every size of batch, would leave holes for no other.
        options.enable_mem_pattern = False
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        if not self._in_integers:
            leave_to_floats(options)
        return options

    def _session(self, graph: bytes | str, options: Any) -> Any:
        session = onnxruntime.InferenceSession(graph, options, providers=self._providers)
        providers.require(session, self._providers)
        # A second copy of the weights, kept for `set_providers`, which is never called.
        session._model_bytes = b""  # noqa: SLF001 - there is no public way
        return session


class OnnxRuntimeTensorRTRunner(OnnxRuntimeRunner):
    """The same with TensorRT under ONNX Runtime, which builds its engines when it loads.

    What TensorRT cannot run is left to CUDA.
    """

    backend: ClassVar[str] = "onnxruntime_tensorrt"
    tensorrt: ClassVar[bool] = True

    def _session(self, graph: bytes | str, options: Any) -> Any:
        started = time.perf_counter()
        session = super()._session(graph, options)
        self.build_seconds = (self.build_seconds or 0.0) + time.perf_counter() - started
        return session
