"""Study 1: which activation learns in ten layers, with and without batch normalisation."""

from foveate_train.settings import Settings
from foveate_train.studies.comparison import Comparison, Variant

_EPOCHS = 15


def _published(*accuracies: float) -> dict[int, float]:
    return dict(zip(range(1, _EPOCHS + 1), accuracies, strict=True))


STUDY = Comparison(
    name="normalisation",
    title="Normalisation and activation",
    question=(
        "Ten 3x3 convolutions of 32 channels without pooling, global average pooling and a linear "
        "layer, with sigmoid or ReLU, with batch normalisation or without. Published: without "
        "normalisation neither learns (11.35 % is the share of the digit 1 in the test set); with "
        "it both do, ReLU far better than sigmoid, and the best is 99.31 %."
    ),
    setting=(
        "Initialisation, optimiser and learning rate are not published. What it takes to see the "
        "finding: plain stochastic gradient descent, without momentum and at a constant rate, from "
        "PyTorch's own initialisation (uniform with a standard deviation of 1 / sqrt(3 fan-in))."
    ),
    why=(
        "The sigmoid's derivative is at most 0.25, so each layer that the gradient passes on its "
        "way back shrinks it by a factor of four at least, before the weights change it further. "
        "ReLU's derivative is 1 or 0, but without normalisation the initial weights shrink the "
        "signal and the gradient alike. Where the line falls to the left, the early layers do not "
        "learn. Batch normalisation brings every layer's values back to the scale at which the "
        "gradient passes."
    ),
    classifier="foveate:plain10",
    variants={
        "none-sigmoid": Variant(
            "conv + sigmoid",
            {"activation": "sigmoid", "normalisation": "none"},
            _published(10.09, 9.82, *(11.35,) * 13),
        ),
        "none-relu": Variant(
            "conv + ReLU",
            {"activation": "relu", "normalisation": "none"},
            _published(*(11.35,) * 15),
        ),
        "batch-sigmoid": Variant(
            "conv + BN + sigmoid",
            {"activation": "sigmoid", "normalisation": "batch"},
            _published(
                *(9.48, 9.8, 10.1, 22.84, 41.51, 69.51, 41.2, 46.54),
                *(66.63, 51.88, 86.88, 77.89, 86.72, 90.74, 89.56),
            ),
        ),
        "batch-relu": Variant(
            "conv + BN + ReLU",
            {"activation": "relu", "normalisation": "batch"},
            _published(
                *(69.62, 93.4, 90.89, 98.08, 99.15, 98.91, 99.16, 99.2),
                *(99.28, 99.29, 99.27, 99.31, 99.3, 99.3, 99.27),
            ),
        ),
    },
    settings=Settings(
        epochs=_EPOCHS,
        batch_size=128,
        optimizer="sgd",
        momentum=0,
        schedule="constant",
        learning_rate=0.05,
        weight_decay=0,
        shift=0,
    ),
)
