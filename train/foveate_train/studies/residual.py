"""Study 2: whether 81 convolutions learn, with and without shortcuts."""

from foveate_train.settings import Settings
from foveate_train.studies.comparison import Comparison, Variant

STUDY = Comparison(
    name="residual",
    title="Residual blocks",
    question=(
        "A convolution, 40 blocks of two 3x3 convolutions of 32 channels with batch normalisation "
        "and ReLU, global average pooling and a linear layer: with a shortcut around every block, "
        "and without. No figures are published; the network without shortcuts is expected to fail "
        "or to lag."
    ),
    setting=(
        "The two have the same layers, the same weights to begin with, and see the same pictures "
        "in the same order. Stochastic gradient descent with momentum at a constant rate, from "
        "PyTorch's own initialisation."
    ),
    classifier="foveate:residual42",
    variants={
        "shortcut": Variant("with shortcuts", {"shortcut": True}),
        "plain": Variant("without shortcuts", {"shortcut": False}),
    },
    settings=Settings(
        epochs=5,
        batch_size=128,
        optimizer="sgd",
        momentum=0.9,
        schedule="constant",
        learning_rate=0.02,
        weight_decay=0,
        shift=0,
    ),
)
