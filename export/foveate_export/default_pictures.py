"""The pictures that a classifier is compared on, where the user names none."""

import numpy as np

from foveate_export.pictures import (
    DIGITS,
    MOST,
    Pictures,
    decoded,
    noise,
    png,
    shipped,
)
from foveate_train.classifier import Classifier
from foveate_train.data import mnist
from foveate_train.errors import DataError


def for_classifier(classifier: Classifier) -> Pictures:
    """Return real pictures of the classifier's kind where there are any, or else noise.

    MNIST's test digits for a classifier of digits, the photographs of
    scikit-image where it is installed, or else noise with a fixed seed.
    """
    spec = classifier.input
    if spec.channels == 1 and classifier.labels == DIGITS:
        try:
            digits, _ = mnist.load("test")
        except DataError:
            return noise(spec)
        images = [decoded(png(digit), spec, "an MNIST digit") for digit in digits[:MOST]]
        return Pictures(np.stack(images), "MNIST test digits")
    return shipped(spec)
