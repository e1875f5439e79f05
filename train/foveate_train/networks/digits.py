"""What the networks for MNIST have in common."""

from foveate_runtime.bundle.manifest import InputSpec

DIGITS = tuple("0123456789")

# The mean and standard deviation of the training pictures' pixels.
MNIST_INPUT = InputSpec(
    height=28,
    width=28,
    channels=1,
    resize=28,
    interpolation="bilinear",
    mean=(0.1307,),
    std=(0.3081,),
)
