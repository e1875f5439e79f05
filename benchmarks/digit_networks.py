"""Trains a ConvNeXt and a vision transformer on MNIST, and exports them for `benchmarks.trust`.

    python -m benchmarks.digit_networks --repository DIR --checkpoints DIR

They become the models `convnext_mnist` and `vit_mnist`. The ConvNeXt is timm's, with the widths
below and no weights of others.
"""

import argparse
import sys
from pathlib import Path

from timm.models.convnext import ConvNeXt

from foveate_export.commands import export
from foveate_train.commands import train
from foveate_train.networks.digits import DIGITS, MNIST_INPUT
from foveate_train.registry import Blueprint, register

NETWORKS = {"vit_mnist": ("1", "0.003"), "convnext_mnist": ("1", "0.004")}
"""The epochs and the learning rate of each, by its name."""


@register("convnext_mnist")
def convnext_mnist() -> Blueprint:
    """Build the ConvNeXt: it strides three times, as a digit has no more pixels."""
    module = ConvNeXt(
        in_chans=1,
        num_classes=10,
        depths=(1, 1, 2, 1),
        dims=(32, 64, 96, 128),
        patch_size=2,
        output_stride=8,
    )
    return Blueprint(module, MNIST_INPUT, DIGITS)


def main() -> int:
    """Train and export what is not there; return the first exit code that is not 0."""
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--repository", type=Path, required=True)
    options.add_argument("--checkpoints", type=Path, required=True)
    options.add_argument("--threads", default="2")
    chosen = options.parse_args()
    threads = ["--threads", chosen.threads]
    for name, (epochs, rate) in NETWORKS.items():
        out = str(chosen.checkpoints / name)
        # bfloat16 takes three times as long on processors without instructions for it.
        plan = ["--epochs", epochs, "--learning-rate", rate, "--precision", "float32"]
        code = 0
        if not Path(out).exists():
            code = train.main(
                ["mnist", "--model", f"foveate:{name}", "--out", out, *plan, *threads]
            )
        if not code and not (chosen.repository / name).exists():
            place = ["--repository", str(chosen.repository), "--name", name]
            code = export.main([out, *place, "--variants", "fp32,int8", "--calibration", "mnist"])
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
