"""Measures a bundle's accuracy with the pieces that serve it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from foveate_export.labelled import Labelled
from foveate_export.pictures import decoded
from foveate_serve.backends.base import Runner
from foveate_serve.bundle.manifest import IMAGE_INPUT, LOGITS_OUTPUT, Accuracy, InputSpec

BATCH = 32
"""Where the throughput of a CPU has long stopped growing with the batch."""


def accuracy(
    runner: Runner,
    spec: InputSpec,
    labelled: Labelled,
    advance: Callable[[int], object] = lambda _: None,
) -> Accuracy:
    """Classify every labelled picture and count how often its class is found.

    Args:
        runner: the variant, loaded.
        spec: how a picture becomes its input.
        labelled: the pictures; at least one.
        advance: told how many pictures were classified, after each batch.

    Raises:
        ExportError: a picture cannot be decoded; named, since an accuracy over
            the rest would pass for one over all.
        foveate_serve.backends.base.BackendError: the engine fails.
    """
    first = among_five = count = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pictures = iter(labelled)
        while batch := list(islice(pictures, BATCH)):
            images = list(pool.map(lambda item: decoded(item[1], spec, item[0]), batch))
            targets = np.array([target for _, _, target in batch])[:, None]
            logits = runner.run({IMAGE_INPUT: np.stack(images)}, [LOGITS_OUTPUT])[LOGITS_OUTPUT]
            hits = np.argsort(-logits, axis=1, kind="stable")[:, :5] == targets
            first += int(hits[:, 0].sum())
            among_five += int(hits.any(1).sum())
            count += len(batch)
            advance(len(batch))
    return Accuracy(data=labelled.name, images=count, top1=first / count, top5=among_five / count)
