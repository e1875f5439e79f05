"""Trains a Swin, a pooled vision transformer and one of photographs, for other benchmarks.

    python -m benchmarks.attention_networks --out DIR [--networks NAME ...] [--digits N]

Of MNIST's digits: timm's Swin at half of Swin-T's width, and `foveate:vit_mnist` with the mean of
its tokens. Of photographs: the first stages of EfficientNet-Lite0, with published weights that
stay as they are, and timm's vision transformer with a class token behind them, which learns the
three coarse classes of `benchmarks.finetuning_sets`. Each becomes a checkpoint in DIR, beside
those of `benchmarks.digit_networks`; what is there is kept.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from benchmarks import finetuning_sets
from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import registry
from foveate_train.data import mnist
from foveate_train.data.folder import FolderData, scan
from foveate_train.data.memory import InMemory
from foveate_train.fit import Plan, fit
from foveate_train.networks.digits import DIGITS, MNIST_INPUT
from foveate_train.registry import Blueprint, register
from foveate_train.settings import Settings

DIGITS_TRAINED = 60_000
DIGITS_WATCHED = 1_000
SIDE = 160
WIDTH = 96
PHOTOGRAPHS = 25
"""Of each coarse class to train on, each whole and twice in part."""


@register("swin_mnist")
def swin_mnist() -> Blueprint:
    """Build timm's Swin for digits: windows of 4 x 4 of 7 x 7 tokens, shifted in turn."""
    module = SwinTransformer(
        img_size=28,
        patch_size=4,
        in_chans=1,
        num_classes=10,
        embed_dim=48,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
    )
    return Blueprint(module, MNIST_INPUT, DIGITS)


class Hybrid(nn.Module):
    """A transformer with a class token on the cells of EfficientNet-Lite0's fifth stage.

    Maps float32 [N, 3, SIDE, SIDE] to logits [N, classes].
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        lite0 = registry.create("package:efficientnet_lite0").module
        self.stem = nn.Sequential(lite0.conv_stem, lite0.bn1, *list(lite0.blocks)[:5])
        self.stem.requires_grad_(requires_grad=False)
        cells = SIDE // 16
        self.transformer = VisionTransformer(
            img_size=cells,
            patch_size=1,
            in_chans=112,
            num_classes=classes,
            embed_dim=WIDTH,
            depth=3,
            num_heads=4,
        )

    def train(self, mode: bool = True) -> "Hybrid":
        """Train the transformer alone: the statistics of the stages stay as published."""
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits of normalised pictures."""
        logits: torch.Tensor = self.transformer(self.stem(pixels))
        return logits


@register("hybrid_photographs")
def hybrid_photographs() -> Blueprint:
    """Build the transformer of photographs, with the published weights below it."""
    spec: InputSpec = registry.create("package:efficientnet_lite0").input
    labels = tuple(sorted(finetuning_sets.COARSE))
    return Blueprint(
        Hybrid(len(labels)), spec.changed(height=SIDE, width=SIDE, resize=SIDE * 8 // 7), labels
    )


def train_digits(name: str, rate: float, epochs: int, out: Path, count: int) -> None:
    """Train a network of digits on the first `count` of MNIST and write its checkpoint."""
    network, *words = name.split()
    settings = Settings(
        epochs=epochs, learning_rate=rate, batch_size=64, clip_norm=1.0, precision="float32"
    )
    classifier = registry.create(network, weights="random:0", **registry.parse_arguments(words))
    parts = []
    for split, most in (("train", count), ("test", DIGITS_WATCHED)):
        images, labels = (torch.from_numpy(each[:most]) for each in mnist.load(split))
        parts.append(InMemory(images[:, None], labels, classifier.input))
    plan = Plan(classifier, *parts, "test_accuracy", selects=False)
    fit(plan, settings, out, device=torch.device("cpu"))


def train_photographs(out: Path) -> None:
    """Train the hybrid on photographs of the coarse classes; the rest of each is watched."""
    settings = Settings(
        epochs=3, learning_rate=1e-3, batch_size=25, label_smoothing=0.1, precision="float32"
    )
    classifier = registry.create("foveate:hybrid_photographs", weights="random:0")
    # `random:` leaves the published weights as the builder has loaded them.
    each = dict.fromkeys(finetuning_sets.COARSE, 3 * PHOTOGRAPHS)
    judged = dict.fromkeys(finetuning_sets.COARSE, 12)
    drawn = {
        "trained": finetuning_sets.photographs(np.random.default_rng(0), counts=each),
        "judged": finetuning_sets.other_photographs(np.random.default_rng(0), names=judged),
    }
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            FolderData(
                scan(finetuning_sets.write(pictures, Path(folder, part)), "fail"),
                classifier.input,
                settings,
                workers=0,
            )
            for part, pictures in drawn.items()
        ]
        plan = Plan(classifier, *parts, "test_accuracy", selects=False)
        fit(plan, settings, out, device=torch.device("cpu"))


NETWORKS: Mapping[str, Callable[[Path, int], None]] = {
    "swin_mnist": lambda out, n: train_digits("foveate:swin_mnist", 2e-3, 1, out, n),
    "vit_pooled_mnist": lambda out, n: train_digits("foveate:vit_mnist pool=true", 3e-3, 1, out, n),
    "hybrid_photographs": lambda out, _: train_photographs(out),
}
"""What trains each, by the name of its checkpoint, with the digits to train on."""


def main() -> None:
    """Train what is not there."""
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--out", type=Path, required=True, help="the folder of the checkpoints")
    options.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options.add_argument("--digits", type=int, default=DIGITS_TRAINED, help="to train on")
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    for name in chosen.networks:
        out = chosen.out / name
        if not out.exists():
            NETWORKS[name](out, chosen.digits)


if __name__ == "__main__":
    main()
