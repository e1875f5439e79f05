"""Builds an engine of a graph.

The network is strongly typed: every tensor has the type that the ONNX file
gives it. Precision is therefore decided where the variant is made, and nowhere
here; float32 stays float32, without TF32.
"""

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from foveate_export.errors import EngineError
from foveate_export.publish.tensorrt.target import Target, portable_capabilities
from foveate_runtime.backends.tensorrt.flavour import Library
from foveate_runtime.bundle.manifest import CLASS_IDS_INPUT
from foveate_runtime.bundle.publishing import RepositoryError

_PARSER_ERRORS = 3


def build(onnx: Path, outputs: Collection[str], target: Target) -> bytes:
    """Build the engine of a graph that returns `outputs`, and only those.

    Args:
        onnx: a graph that keeps the graph contract.
        outputs: names of its outputs.
        target: what to build for.

    Raises:
        EngineError: the graph, or the GPU, is beyond the library; says what it said.
    """
    library = target.library
    trt = library.module
    builder = trt.Builder(library.logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    # The network refers to weights that the parser owns.
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(onnx)):
        raise EngineError(f"{library.flavour.title} does not take {onnx.name}: {_errors(parser)}")
    _keep_outputs(network, outputs)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.add_optimization_profile(_profile(builder, network, target))
    if library.flavour.portable:
        known = portable_capabilities(library)
        config.num_compute_capabilities = len(target.capabilities)
        for index, capability in enumerate(target.capabilities):
            config.set_compute_capability(known[capability], index)
    if target.timing_cache:
        read_timing_cache(config, target.timing_cache, library)
    library.errors.clear()
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(
            f"{library.flavour.title} cannot build {onnx.name} for compute capability "
            f"{', '.join(target.capabilities)}: {library.cause()}"
        )
    if target.timing_cache:
        write_timing_cache(config, target.timing_cache)
    return bytes(engine)


def read_timing_cache(config: Any, file: Path, library: Library) -> None:
    """Give the builder what it measured before; an absent file is an empty one.

    Raises:
        EngineError: the file is of another version or another GPU.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise EngineError(f"timing cache {file}: {error.strerror}") from error
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError(
            f"timing cache {file}: {library.flavour.title} {library.version} cannot use it "
            f"on this GPU; remove it or name another ({library.cause()})"
        )


def write_timing_cache(config: Any, file: Path) -> None:
    """Write what the builder measured, whole or not at all.

    Raises:
        RepositoryError: the file cannot be written.
    """
    aside = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(bytes(config.get_timing_cache().serialize()))
        aside.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise RepositoryError(f"timing cache {file}: {error.strerror}") from error


def _keep_outputs(network: Any, outputs: Collection[str]) -> None:
    present = [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in present:
        # What leads to it alone is dropped with it.
        if tensor.name not in outputs:
            network.unmark_output(tensor)
    missing = set(outputs) - {tensor.name for tensor in present}
    if missing:
        raise EngineError(f"the graph has no output {', '.join(sorted(missing))}")


def _profile(builder: Any, network: Any, target: Target) -> Any:
    profile = builder.create_optimization_profile()
    sizes = [
        (target.batch.minimum, target.classes.minimum),
        (target.batch.optimum, target.classes.optimum),
        (target.batch.maximum, target.classes.maximum),
    ]
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name == CLASS_IDS_INPUT:
            profile.set_shape(tensor.name, *sizes)
        else:
            pixels = tuple(tensor.shape)[1:]
            profile.set_shape(tensor.name, *((batch, *pixels) for batch, _ in sizes))
    return profile


def _errors(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [
        f"node {error.node_name()!r} ({error.node_operator()}): {' '.join(error.desc().split())}"
        for error in errors[:_PARSER_ERRORS]
    ]
    if len(errors) > _PARSER_ERRORS:
        said.append(f"and {len(errors) - _PARSER_ERRORS} more")
    return "; ".join(said)
