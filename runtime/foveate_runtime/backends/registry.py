"""The backends by name, imported at their first use."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal

from foveate_runtime.backends.base import BackendError, BareEngine, Runner
from foveate_runtime.backends.integers import in_integers
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import Manifest
from foveate_runtime.cores import affine_cores, count_cores


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Where a backend is: its runner, the packages it needs, and the extra that brings them.

    The first package is the engine's own. `devices` are the kinds it runs on, and
    `quickest` the variants for which it is preferred to those before it. `bare`
    is what runs graphs that are in no bundle, where there is such a thing.
    """

    runner: str
    packages: tuple[str, ...]
    extra: str
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    quickest: tuple[str, ...] = ()
    bare: str | None = None


BACKENDS = MappingProxyType(
    {
        "onnxruntime": Backend(
            runner="foveate_runtime.backends.onnxruntime.runner:OnnxRuntimeRunner",
            packages=("onnxruntime",),
            extra="cpu",
            bare="foveate_runtime.backends.onnxruntime.bare:open_graph",
        ),
        "openvino": Backend(
            runner="foveate_runtime.backends.openvino.runner:OpenVinoRunner",
            packages=("openvino",),
            extra="openvino",
            devices=("cpu",),
            # A quarter less time than in ONNX Runtime; fp32 takes the same in both.
            quickest=("int8",),
            bare="foveate_runtime.backends.openvino.bare:open_graph",
        ),
        "tensorrt": Backend(
            runner="foveate_runtime.backends.tensorrt.runner:TensorRTRunner",
            packages=("tensorrt",),
            extra="tensorrt",
            devices=("cuda",),
        ),
        "tensorrt_rtx": Backend(
            runner="foveate_runtime.backends.tensorrt.runner:TensorRTRTXRunner",
            packages=("tensorrt_rtx",),
            extra="tensorrt-rtx",
            devices=("cuda",),
        ),
        "onnxruntime_tensorrt": Backend(
            runner="foveate_runtime.backends.onnxruntime.runner:OnnxRuntimeTensorRTRunner",
            packages=("onnxruntime",),
            extra="gpu",
            devices=("cuda",),
        ),
        "torch": Backend(
            runner="foveate_runtime.backends.torch.runner:TorchRunner",
            packages=("torch", "onnx"),
            extra="torch",
        ),
        "torch_compile": Backend(
            runner="foveate_runtime.backends.torch.compiled:TorchCompileRunner",
            packages=("torch", "onnx"),
            extra="torch",
        ),
    }
)
"""The backends, the preferred one first."""


def create_runner(
    bundle: Bundle,
    *,
    variant: str | None = None,
    backend: str | None = None,
    device: str = "cpu",
    threads: int = 0,
) -> Runner:
    """Load one variant of a bundle on a backend.

    `variant` None takes the manifest's first, but none whose int8 would be left to
    floating point here. `backend` None takes the preferred one for the variant whose
    engine is installed. `threads` are those of one run, 0 as many as the engine
    finds cores, or as a quota allows. Raises BackendError where the variant, the
    backend or its engine is missing, or the graph cannot be loaded.
    """
    names = [entry.name for entry in bundle.manifest.variants]
    variant = _first_quick(bundle.manifest, device) if variant is None else variant
    if variant not in names:
        raise BackendError(f"no variant {variant!r}; the bundle has {', '.join(names)}")
    runner = load_backend(_preferred(variant, device) if backend is None else backend)
    if not threads and count_cores() < affine_cores():
        threads = count_cores()  # engines read the affinity, and not the quota
    return runner(bundle, variant=variant, device=device, threads=threads)


def load_backend(name: str) -> type[Runner]:
    """Import a backend with its engine's package, and return its runner.

    Raises BackendError where there is no such backend, or a package is missing.
    """
    require_backend(name)
    runner: type[Runner] = _imported(BACKENDS[name].runner)
    return runner


def require_backend(name: str) -> None:
    """Raise BackendError where there is no such backend, or one of its packages is missing.

    Nothing is imported. The message names the line that installs what is missing.
    """
    if name not in BACKENDS:
        raise BackendError(f"no backend {name!r}; there are {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    for package in backend.packages:
        if find_spec(package) is None:
            raise BackendError(
                f"the backend {name!r} needs the package {package}: "
                f'pip install "foveate-runtime[{backend.extra}]"'
            )


def engine_version(name: str) -> str:
    """Return the version of a backend's engine, whose package is imported.

    Raises BackendError where there is no such backend, or its engine is missing.
    """
    require_backend(name)
    package = BACKENDS[name].packages[0]
    try:
        return str(import_module(package).__version__)
    except ImportError as error:
        raise BackendError(f"the package {package} cannot be imported ({error})") from error


def bare_engines() -> Iterator[tuple[str, BareEngine]]:
    """Yield the installed backends that run graphs without a bundle, by name."""
    for name, backend in BACKENDS.items():
        if backend.bare is not None and find_spec(backend.packages[0]) is not None:
            yield name, _imported(backend.bare)


def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _first_quick(manifest: Manifest, device: str) -> str:
    """Return the first variant, on a processor the first that it need not leave to floats."""
    quick = (entry.name for entry in manifest.variants if device != "cpu" or in_integers(entry))
    return next(quick, manifest.variants[0].name)


def _preferred(variant: str, device: str) -> str:
    """Return the backend that runs a variant where none is named."""
    kind = device.partition(":")[0]
    installed = [name for name, b in BACKENDS.items() if find_spec(b.packages[0]) is not None]
    quick = [
        name
        for name in installed
        if variant in BACKENDS[name].quickest and kind in BACKENDS[name].devices
    ]
    return next(chain(quick, installed, BACKENDS))
