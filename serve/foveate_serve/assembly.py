"""Builds the engine of a server from its settings."""

from functools import partial
from importlib import import_module
from pathlib import Path

from foveate_runtime.backends.base import BackendError, Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle, CheckManifest
from foveate_runtime.cores import ANY_CORE, count_cores, deal_cores
from foveate_runtime.imaging.decode import ImageLimits
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.engine.explain import ExplanationLimits
from foveate_serve.observer import Observer
from foveate_serve.repository.recommended import Recommendations
from foveate_serve.repository.repository import Repository
from foveate_serve.settings import ModelSettings, Settings, SettingsError


def make_engine(settings: Settings, observer: Observer | None = None) -> Engine:
    """Return the engine, whose repository is still to be opened.

    `observer` is notified of its events. Raises SettingsError where signatures are
    required and the keys cannot be read.
    """
    recommendations = Recommendations(Path(settings.repository))

    def make_runner(bundle: Bundle) -> Runner:
        own = settings.of(bundle.manifest.name)
        make = partial(create_runner, bundle, device=own.device, threads=engine_threads(own))
        if own.variant is None and own.backend is None:
            found = recommendations.find(bundle, own.device)
            if found is not None:
                try:
                    return make(variant=found.variant, backend=found.backend)
                except BackendError as error:
                    recommendations.refused(bundle, error)
        return make(variant=own.variant, backend=own.backend)

    return Engine(
        Repository(
            Path(settings.repository),
            make_runner,
            batch_policy(settings),
            observer,
            policies={name: batch_policy(settings.of(name)) for name in settings.models},
            labels=settings.version_labels,
            run_limit=settings.engine_timeout,
            load_limit=settings.load_timeout,
            check_manifest=signature_check(settings),
            max_bytes=settings.max_model_bytes,
        ),
        Limits(
            image=ImageLimits(
                max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels
            ),
            explanation=ExplanationLimits(
                max_cam_classes=settings.max_cam_classes,
                max_picture_side=settings.max_picture_side,
                max_feature_bytes=settings.max_feature_bytes,
            ),
            max_requests=settings.max_requests,
            max_request_bytes=settings.max_request_bytes,
        ),
        image_threads=settings.image_threads,
        cache_bytes=settings.cache_bytes,
        deduplicate=settings.deduplicate,
        observer=observer,
    )


def signature_check(settings: Settings) -> CheckManifest | None:
    """Return the check of a bundle's signature, None where none is required.

    Raises SettingsError where the keys cannot be read, or cryptography is missing.
    """
    if settings.require_signature is None:
        return None
    try:
        signing = import_module("foveate_runtime.bundle.signing")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cryptography":
            raise
        raise SettingsError(
            'require_signature: it needs cryptography: pip install "foveate-serve[signing]"'
        ) from error
    try:
        check: CheckManifest = signing.Keys.read(settings.require_signature).check
    except signing.KeyFileError as error:
        raise SettingsError(f"require_signature: {error}") from error
    return check


def batch_policy(settings: ModelSettings) -> BatchPolicy:
    """Return how the batches of a model with these settings form."""
    instances = settings.instances
    return BatchPolicy(
        max_batch=settings.max_batch,
        preferred_sizes=settings.preferred_batches,
        max_delay=settings.max_delay,
        max_queue=settings.max_queue,
        priority_queues=settings.priority_queues,
        default_priority=settings.default_priority,
        objective=settings.latency_objective,
        lanes=settings.lanes,
        cores=deal_cores(instances) if settings.pin_cores else (ANY_CORE,) * instances,
    )


def engine_threads(settings: ModelSettings) -> int:
    """Return the threads of one instance, 0 for as many as its engine finds cores."""
    if settings.engine_threads or (settings.instances == 1 and not settings.pin_cores):
        return settings.engine_threads
    return max(1, count_cores() // settings.instances)
