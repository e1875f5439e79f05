"""The parts of a server, put together from its settings."""

from functools import partial

from foveate_serve.backends.registry import create_runner
from foveate_serve.batcher import BatchPolicy
from foveate_serve.engine import Engine, Limits
from foveate_serve.explain import ExplanationLimits
from foveate_serve.imaging.decode import ImageLimits
from foveate_serve.observer import Observer
from foveate_serve.repository import Repository
from foveate_serve.settings import Settings


def make_engine(settings: Settings, observer: Observer | None = None) -> Engine:
    """Return the engine, whose repository is still to be opened.

    `observer` is told what happens in it.
    """
    return Engine(
        Repository(
            settings.repository,
            partial(
                create_runner,
                variant=settings.variant,
                backend=settings.backend,
                device=settings.device,
                threads=settings.engine_threads,
            ),
            BatchPolicy(
                max_batch=settings.max_batch,
                max_delay=settings.max_delay,
                max_queue=settings.max_queue,
            ),
            observer,
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
        observer=observer,
    )
