"""Study 1: which activation learns in ten layers, with and without batch normalisation."""

from foveate_train.settings import Settings
from foveate_train.studies.comparison import Comparison, Variant

_EPOCHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15)


def _published(*accuracies: float) -> dict[int, float]:
    return dict(zip(_EPOCHS, accuracies, strict=True))


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
    classifier="foveate:plain10",
    variants={
        "none-sigmoid": Variant(
            "conv + sigmoid",
            {"activation": "sigmoid", "normalisation": "none"},
            _published(10.09, 9.82, *(11.35,) * 8),
        ),
        "none-relu": Variant(
            "conv + ReLU",
            {"activation": "relu", "normalisation": "none"},
            _published(*(11.35,) * 10),
        ),
        "batch-sigmoid": Variant(
            "conv + BN + sigmoid",
            {"activation": "sigmoid", "normalisation": "batch"},
            _published(9.48, 9.8, 10.1, 22.84, 41.51, 69.51, 46.54, 51.88, 77.89, 89.56),
        ),
        "batch-relu": Variant(
            "conv + BN + ReLU",
            {"activation": "relu", "normalisation": "batch"},
            _published(69.62, 93.4, 90.89, 98.08, 99.15, 98.91, 99.2, 99.29, 99.31, 99.27),
        ),
    },
    settings=Settings(
        epochs=15,
        batch_size=128,
        optimizer="sgd",
        momentum=0,
        schedule="constant",
        learning_rate=0.05,
        weight_decay=0,
        shift=0,
    ),
)
