"""How far an exported graph lies from the classifier in torch, and how far it may."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from foveate_export.anatomy.taps import Tap
from foveate_export.errors import ParityError, RoundingError
from foveate_export.graph.heads import Head
from foveate_export.pictures import Pictures
from foveate_export.proof.comparison import Comparison, resolve_ranks, some_class_ids
from foveate_export.proof.reference import answer, in_float64
from foveate_runtime.backends.base import Array
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    FEATURES_PREFIX,
    IMAGE_INPUT,
    LOGITS_OUTPUT,
    Parity,
    Tolerances,
)
from foveate_train.classifier import Classifier

Run = Callable[[Mapping[str, Array], Sequence[str]], Mapping[str, Array]]
"""Runs the exported graph, as `foveate_runtime.backends.base.Runner.run` does."""

BATCH = 4
"""Enough to show a mix-up between pictures, few enough for the activations of VGG16."""


def measure(
    classifier: Classifier,
    head: Head | None,
    layers: Sequence[Tap],
    pictures: Pictures,
    *,
    run: Run,
    tolerances: Tolerances,
) -> Parity:
    """Compare every output of the graph with torch on `pictures`.

    Of each picture four classes are explained: the best two, asked for by rank,
    and two asked for by id.

    Raises:
        ParityError: an output differs by more than `tolerances`; says which.
    """
    comparison = Comparison("torch")
    for images in pictures.batches(BATCH):
        inputs: dict[str, Array] = {IMAGE_INPUT: images}
        if head:
            inputs[CLASS_IDS_INPUT] = some_class_ids(len(images), len(classifier.labels))
        got = run(inputs, output_names(head, layers))
        expected = answer(
            classifier,
            images,
            layers=layers,
            head=head,
            classes=resolve_ranks(inputs[CLASS_IDS_INPUT], got[LOGITS_OUTPUT]) if head else None,
        )
        comparison.add(got, expected)
    targets = head.targets if head else {}
    cam_layers = {method: str(target.tap) for method, target in targets.items()}
    comparison.judge(cam_layers, tolerances, pictures)
    return comparison.result(pictures)


def settle(
    classifier: Classifier,
    head: Head | None,
    layers: Sequence[Tap],
    pictures: Pictures,
    *,
    run: Run,
    tolerances: Tolerances,
) -> tuple[Parity, Classifier]:
    """Compare as `measure` does, and again with torch in float64 where the graph would be refused.

    Torch rounds too. Through the 81 plain convolutions of a `residual42` without
    shortcuts its float32 gradients lie further from float64's than is accepted
    of the graph, which then is refused for torch's error. float64 takes several
    times as long, and so has the last word only. It has none on what is judged by
    its root mean square: those limits are far above torch's rounding.

    Returns:
        the figures, and the classifier in the precision that they belong to.

    Raises:
        ParityError: an output differs by more than `tolerances` from either.
        RoundingError: one does, and torch's float32 differs from float64 as well.
    """
    compare = partial(
        measure, head=head, layers=layers, pictures=pictures, run=run, tolerances=tolerances
    )
    try:
        return compare(classifier), classifier
    except ParityError as refusal:
        if tolerances.measure == "rms":
            raise
        exact = in_float64(classifier)
        try:
            return compare(exact), exact
        except RuntimeError:
            # Tensors made in float32 within the network do not follow its parameters.
            raise refusal from None
        except ParityError as still:
            try:
                compare(exact, run=_in_torch(classifier, head, layers))
            except ParityError:
                raise RoundingError(
                    f"{still}. Torch in float32 is as far from float64: the network magnifies "
                    "rounding, as one with random weights may. --no-cams leaves the maps out"
                ) from None
            raise


def _in_torch(classifier: Classifier, head: Head | None, layers: Sequence[Tap]) -> Run:
    """Return what answers as the graph does, in torch."""

    def run(inputs: Mapping[str, Array], _: Sequence[str]) -> Mapping[str, Array]:
        images, classes = inputs[IMAGE_INPUT], None
        if head:
            classes = resolve_ranks(inputs[CLASS_IDS_INPUT], answer(classifier, images).logits)
        return answer(classifier, images, layers=layers, head=head, classes=classes).outputs

    return run


def some_classes(classifier: Classifier, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return class indices to explain, int64 [N, K]: torch's best two, and two others."""
    logits = answer(classifier, images).logits
    return resolve_ranks(some_class_ids(len(images), len(classifier.labels)), logits)


def output_names(head: Head | None, layers: Sequence[Tap]) -> list[str]:
    """Return the graph's outputs in their order."""
    return [
        LOGITS_OUTPUT,
        *(CAM_PREFIX + method for method in (head.methods if head else ())),
        *(FEATURES_PREFIX + tap.path for tap in layers),
    ]
