"""Which models are unloaded so that another one fits within the limit of bytes."""

from collections.abc import Iterable

from foveate_runtime.bundle.manifest import Manifest
from foveate_serve.repository.versions import Model, State, Version


def size_of(manifest: Manifest) -> int:
    """Return what a bundle counts towards the limit: the bytes of its largest graph.

    The file of a graph is known before an engine is started; what the engine takes
    of memory is not, and cannot be separated from what requests take at the same time.
    """
    return max(manifest.files[variant.file].size for variant in manifest.variants)


def bytes_held(models: Iterable[Model]) -> int:
    """Return what the versions that are loaded, or being loaded, count together."""
    return sum(
        version.size
        for model in models
        for version in model.versions.values()
        if version.loaded is not None or version.state is State.LOADING
    )


def least_recently_used(
    models: Iterable[Model], changing: Model, loading: Version
) -> tuple[Model, Version] | None:
    """Return the version that was used longest ago, of those that can be unloaded.

    Such a version is ready, no request uses it, and no other caller changes its model:
    this caller changes the model `changing`. `loading` is a version that the caller loads
    again: it serves until then. None where there is no such version.
    """
    idle = [
        (model, version)
        for model in models
        if model is changing or not model.lock.locked()
        for version in model.versions.values()
        if version is not loading
        and version.state is State.READY
        and version.loaded is not None
        and version.loaded.idle
    ]
    return min(idle, key=lambda found: found[1].last_used, default=None)
