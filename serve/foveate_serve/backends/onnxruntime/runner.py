"""Runs graphs in ONNX Runtime."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from foveate_serve.backends.base import Array, BackendError, OperatorTime, Runner
from foveate_serve.backends.onnxruntime import profiling, providers
from foveate_serve.backends.onnxruntime.pruning import OnnxFile
from foveate_serve.bundle.bundle import Bundle
from foveate_serve.bundle.manifest import FEATURES_PREFIX, IMAGE_INPUT, LOGITS_OUTPUT
from foveate_serve.instances import count_cores

SESSIONS = 6
"""Plain requests, those with maps and those with feature maps, alone and beside
others. Each holds the weights again, in the order that its kernels want."""

# ONNX Runtime's exceptions share no base class of their own.
_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,  # by `OnnxFile`, of a node that cannot be read
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
)


@cache
def _share_arena() -> None:
    """Have all sessions of the process take the memory of their runs from one arena.

    Of their own, each would keep that of its largest batch. It grows by what is
    asked for, as doubling would leave it with up to twice of that.
    """
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    same_as_requested = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator(memory, same_as_requested)


class OnnxRuntimeRunner(Runner):
    """A graph in ONNX Runtime, with a session for each set of outputs when it is first wanted.

    A session computes its whole graph at every run, so each has only what leads
    to its outputs: a plain request must not pay for those of others. Feature
    maps are there anyway and cost a copy, and share a session, whichever of them
    are wanted. The `SESSIONS` used last are kept.

    On a processor a run takes all threads when it is alone, and one when others
    run beside it: threads that share a run wait for each other at every node,
    the more so where decoders take their cores from them.
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
        self._require(self.inputs, self._file.inputs, "input")
        self._require(self.outputs, self._file.outputs, "output")
        if device == "cpu":
            self.lanes = threads or count_cores()
        self._sessions: OrderedDict[tuple[frozenset[str], int], Any] = OrderedDict()
        self._lock = threading.Lock()
        self._session([LOGITS_OUTPUT], threads)

    @staticmethod
    def _require(wanted: Iterable[str], present: Sequence[str], kind: str) -> None:
        for name in wanted:
            if name not in present:
                raise BackendError(f"the graph has no {kind} {name!r}, which the manifest names")

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return self._fetch(self._session(outputs, self.threads), inputs, outputs)

    def _run_beside(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return self._fetch(self._session(outputs, 1), inputs, outputs)

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
            computed = self._computed(outputs)
            session = self._load(computed, self.threads, profile=Path(folder) / "run")
            feed = self._feed(session, inputs)
            try:
                for _ in range(warm_up + runs):
                    session.run(outputs, feed)
            except _ERRORS as error:
                raise BackendError("ONNX Runtime failed to run the graph") from error
            return profiling.read(Path(session.end_profiling()), warm_up=warm_up)

    def trim(self) -> None:
        """Give back what the arena holds beyond the need of one picture."""
        if self.device != "cpu":
            return
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        black = np.zeros((1, *self.image_shape), dtype=np.uint8)
        try:
            session = self._session([LOGITS_OUTPUT], self.threads)
            session.run([LOGITS_OUTPUT], {IMAGE_INPUT: black}, options)
        except _ERRORS as error:
            raise BackendError("ONNX Runtime failed to run the graph") from error

    def close(self) -> None:
        """Release the sessions and their memory."""
        self._sessions.clear()
        del self._file

    @staticmethod
    def _feed(session: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
        # A map may not depend on the classes; then its graph has no such input.
        return {node.name: inputs[node.name] for node in session.get_inputs()}

    def _computed(self, outputs: Sequence[str]) -> frozenset[str]:
        """Return what a session for `outputs` computes: with one feature map, all of them."""
        computed = {LOGITS_OUTPUT, *outputs}
        if any(name.startswith(FEATURES_PREFIX) for name in outputs):
            computed.update(name for name in self.outputs if name.startswith(FEATURES_PREFIX))
        return frozenset(computed)

    def _session(self, outputs: Sequence[str], threads: int) -> Any:
        key = (self._computed(outputs), threads)
        with self._lock:
            if key in self._sessions:
                self._sessions.move_to_end(key)
                return self._sessions[key]
            while len(self._sessions) >= SESSIONS:
                self._sessions.popitem(last=False)
            self._sessions[key] = self._load(*key)
            return self._sessions[key]

    def _load(self, outputs: frozenset[str], threads: int, *, profile: Path | None = None) -> Any:
        """Return a new session, which notes its times in files that begin with `profile`."""
        options = onnxruntime.SessionOptions()
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors; warnings are about optimisations not made
        # A thread that spins between two runs takes its core from the decoders.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A block for a whole run, another for every size of batch, would leave holes for no other.
        options.enable_mem_pattern = False
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        try:
            session = onnxruntime.InferenceSession(
                self._file.prune(outputs), options, providers=self._providers
            )
        except _ERRORS as error:
            raise BackendError(f"ONNX Runtime cannot load the variant {self.variant!r}") from error
        providers.require(session, self._providers)
        # Kept for `set_providers`, which nobody calls: the weights once more.
        session._model_bytes = b""  # noqa: SLF001 - there is no public way
        return session


class OnnxRuntimeTensorRTRunner(OnnxRuntimeRunner):
    """The same with TensorRT under ONNX Runtime, which builds its engines when it loads.

    What TensorRT cannot run is left to CUDA.
    """

    backend: ClassVar[str] = "onnxruntime_tensorrt"
    tensorrt: ClassVar[bool] = True

    def _load(self, outputs: frozenset[str], threads: int, *, profile: Path | None = None) -> Any:
        started = time.perf_counter()
        session = super()._load(outputs, threads, profile=profile)
        self.build_seconds = (self.build_seconds or 0.0) + time.perf_counter() - started
        return session
