"""Study 2: whether 81 convolutions learn, with and without shortcuts."""

from foveate_train.settings import Settings
from foveate_train.studies.comparison import Comparison, Variant

STUDY = Comparison(
    name="residual",
    title="Residual blocks",
    question=(
        "A convolution, 40 blocks of two 3x3 convolutions of 32 channels with batch normalisation "
        "and ReLU, global average pooling and a linear layer: with a shortcut around every block, "
        "and without. The network is called 42 layers deep: one convolution, 40 blocks and one "
        "linear layer. Counted as ResNet-18 counts its own, by the layers with weights, it has 82: "
        "1 + 40 x 2 = 81 convolutions, and the linear layer. The network without shortcuts is "
        "expected to fail or to lag."
    ),
    setting=(
        "The two have the same layers, the same weights to begin with, and see the same pictures "
        "in the same order. Stochastic gradient descent with momentum at a constant rate, from "
        "PyTorch's own initialisation."
    ),
    why=(
        "Without shortcuts batch normalisation makes the gradient grow on its way back, by a "
        "factor in each layer (Yang et al., A mean field theory of batch normalization, 2019): a "
        "step that suits the last layers is far too long for the first ones. A shortcut hands the "
        "gradient to the block before it as it is, beside what the block's two convolutions make "
        "of it, so all layers are near one scale."
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
