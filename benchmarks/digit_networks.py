"""Trains a ConvNeXt and a vision transformer on MNIST, for `benchmarks.trust`.

    python -m benchmarks.digit_networks --out DIR

They become the checkpoints `convnext_mnist` and `vit_mnist`. The ConvNeXt is timm's, with the
widths below and no weights of others.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.convnext import ConvNeXt

from foveate_runtime.bundle.manifest import IMAGE_INPUT, LOGITS_OUTPUT
from foveate_train import checkpoint
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


class Trained:
    """A network of a checkpoint, run by torch: what `collect` needs of a runner."""

    def __init__(self, folder: Path) -> None:
        self.classifier = checkpoint.load(folder).classifier
        spec = self.classifier.input
        self._mean, self._std = (
            torch.tensor(each).view(-1, 1, 1) for each in (spec.mean, spec.std)
        )

    def run(
        self, inputs: Mapping[str, NDArray[Any]], _: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the logits of the pictures, uint8 [N, H, W, C]."""
        pictures = torch.from_numpy(inputs[IMAGE_INPUT]).permute(0, 3, 1, 2)
        with torch.inference_mode():
            logits = self.classifier.module.eval()((pictures / 255 - self._mean) / self._std)
        return {LOGITS_OUTPUT: logits.numpy()}


def main() -> int:
    """Train what is not there; return the first exit code that is not 0."""
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--out", type=Path, required=True, help="the folder of the checkpoints")
    options.add_argument("--threads", default="2")
    chosen = options.parse_args()
    for name, (epochs, rate) in NETWORKS.items():
        out = chosen.out / name
        # bfloat16 takes three times as long on processors without instructions for it.
        plan = ["--epochs", epochs, "--learning-rate", rate, "--precision", "float32"]
        arguments = ["--model", f"foveate:{name}", "--out", str(out), "--threads", chosen.threads]
        if not out.exists() and (code := train.main(["mnist", *arguments, *plan])):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
