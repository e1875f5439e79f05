"""Puts engines into a bundle, each with a sidecar that says what it is."""

import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from foveate_export.errors import UsageError
from foveate_export.progress import Stage
from foveate_export.publish.tensorrt.builder import build
from foveate_export.publish.tensorrt.target import Target
from foveate_runtime.backends.base import graph_outputs
from foveate_runtime.backends.tensorrt.sidecar import (
    ENGINE_SUFFIX,
    ENGINES_FOLDER,
    SIDECAR_SUFFIX,
    Sidecar,
)
from foveate_runtime.bundle.bundle import Bundle, digest
from foveate_runtime.bundle.manifest import (
    LOGITS_OUTPUT,
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    VariantEntry,
)
from foveate_runtime.bundle.publishing import RepositoryError


def suitable_variants(manifest: Manifest) -> list[str]:
    """Return the variants that TensorRT takes: all but int8 with asymmetric activations."""
    return [variant.name for variant in manifest.variants if _is_suitable(variant)]


def check_variants(manifest: Manifest, variants: Sequence[str]) -> None:
    """Raise UsageError for a variant that the bundle has not, or that TensorRT does not take."""
    entries = {variant.name: variant for variant in manifest.variants}
    for name in variants:
        if name not in entries:
            raise UsageError(f"no variant {name}; the bundle has {', '.join(entries)}")
        if not _is_suitable(entries[name]):
            raise UsageError(
                f"{name}: its activations are asymmetric, and TensorRT takes symmetric ones "
                "(the variant int8-symmetric)"
            )


def build_engines(
    bundle: Path,
    manifest: Manifest,
    variants: Iterable[str],
    target: Target,
    *,
    folder: Path,
    stage: Stage = nullcontext,
) -> list[Sidecar]:
    """Build the engines of some variants, and write them and their sidecars into `folder`.

    Each variant gets one engine for requests that want the logits alone and,
    where the graph explains, one that returns every output: an output in the
    middle of a network keeps TensorRT from merging layers, and all outputs of
    an engine are computed at every run.

    Raises:
        EngineError: an engine cannot be built.
        RepositoryError: it cannot be written.
    """
    everything = tuple(graph_outputs(manifest))
    kinds = {"classify": (LOGITS_OUTPUT,), "explain": everything}
    if everything == (LOGITS_OUTPUT,):
        del kinds["explain"]
    built = []
    for name in variants:
        onnx = bundle / manifest.variant(name).file
        source = digest(onnx)
        for kind, outputs in kinds.items():
            with stage(
                f"{name}: building the engine to {kind} with {target.library.flavour.title}"
            ):
                started = time.perf_counter()
                engine = build(onnx, outputs, target)
                seconds = time.perf_counter() - started
            sidecar = Sidecar.model_validate(
                {
                    "flavour": target.library.flavour.name,
                    "version": target.library.version,
                    "compute_capabilities": target.capabilities,
                    "variant": name,
                    "onnx_sha256": source,
                    "kind": kind,
                    "outputs": outputs,
                    "batch": target.batch,
                    "classes": target.classes if manifest.cams else None,
                    "engine_sha256": hashlib.sha256(engine).hexdigest(),
                    "engine_size": len(engine),
                    "build_seconds": round(seconds, 3),
                }
            )
            _write(folder, sidecar, engine)
            built.append(sidecar)
    return built


def add_engines(
    path: Path, variants: Sequence[str], target: Target, stage: Stage = nullcontext
) -> list[Sidecar]:
    """Build engines for a bundle that is published already.

    An engine of the same name is replaced. The bundle can be opened at any time
    while this runs: the engines are built in a folder beside its files, and
    its manifest names them only when all of them are in their place. Several
    may run at once; they publish one after another.

    Args:
        path: the bundle's folder.
        variants: the precisions; none for all that TensorRT takes.
        target: what to build for.
        stage: called for each step, to show progress.

    Raises:
        UsageError: a variant that the bundle has not, or that TensorRT does not take.
        EngineError: an engine cannot be built.
        RepositoryError: the bundle cannot be written.
        foveate_runtime.bundle.bundle.BundleError: it is no bundle.
    """
    with stage("checking the bundle"):
        manifest = Bundle.open(path).manifest
    check_variants(manifest, variants)
    chosen = variants or suitable_variants(manifest)
    with _staging(path) as folder:
        built = build_engines(path, manifest, chosen, target, folder=folder, stage=stage)
        with stage("publishing"), _alone_in(path):
            _publish(folder, path)
    return built


def _is_suitable(variant: VariantEntry) -> bool:
    return variant.quantisation is None or variant.quantisation.scheme == "symmetric"


def _write(folder: Path, sidecar: Sidecar, engine: bytes) -> None:
    try:
        folder.mkdir(exist_ok=True)
        (folder / (sidecar.stem + ENGINE_SUFFIX)).write_bytes(engine)
        text = sidecar.model_dump_json(indent=2) + "\n"
        (folder / (sidecar.stem + SIDECAR_SUFFIX)).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RepositoryError(
            f"{sidecar.stem}{ENGINE_SUFFIX}: cannot be written: {error.strerror}"
        ) from error


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    folder = path / f".{ENGINES_FOLDER}-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
    except OSError as error:
        raise RepositoryError(f"cannot write to {path}: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone_in(path: Path) -> Iterator[None]:
    """Wait until no other process publishes into the folder `path`, and keep others out."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # The system releases the lock when the process ends, in any way.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _publish(folder: Path, path: Path) -> None:
    """Move the files in `folder` to the bundle's engines, and name them in its manifest."""
    files = {
        f"{ENGINES_FOLDER}/{file.name}": FileEntry(sha256=digest(file), size=file.stat().st_size)
        for file in sorted(folder.iterdir())
    }
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST_FILE).read_bytes())
        others = {name: entry for name, entry in manifest.files.items() if name not in files}
        if others.keys() != manifest.files.keys():
            # While a file is replaced, no manifest may name it.
            _write_manifest(manifest, others, folder, path)
        (path / ENGINES_FOLDER).mkdir(exist_ok=True)
        for name in files:
            (folder / Path(name).name).replace(path / name)
        _write_manifest(manifest, others | files, folder, path)
    except OSError as error:
        raise RepositoryError(f"cannot write to {path}: {error.strerror}") from error


def _write_manifest(
    manifest: Manifest, files: dict[str, FileEntry], folder: Path, path: Path
) -> None:
    text = manifest.model_copy(update={"files": files}).model_dump_json(indent=2) + "\n"
    aside = folder / MANIFEST_FILE
    aside.write_text(text, encoding="utf-8")
    aside.replace(path / MANIFEST_FILE)
