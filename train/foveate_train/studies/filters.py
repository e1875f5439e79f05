"""Study 4: the pictures that a small network's filters, neurons and classes answer to most."""

from collections.abc import Callable
from threading import Event

import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.settings import Settings
from foveate_train.studies import network
from foveate_train.studies.options import StudyOptions

NAME = "filters"
SETTINGS = Settings(epochs=3, shift=0)
# Heavy enough that the paper stays black where ink does not help, and light
# enough that the class is still certain.
PENALTY = 0.1

_STEPS = 200
_RATE = 0.05
_GREY = 0.5


def run(options: StudyOptions, stop: Event) -> bool:
    """Train the network, climb its units, and write the page; False if interrupted."""
    trained = network.trained("foveate:keras_cnn", {}, SETTINGS, options, stop)
    if trained is None:
        return False
    module, spec = trained.classifier.module, trained.classifier.input
    extractor = create_feature_extractor(module, ["conv2", "relu", "fc2"]).eval()
    climbed = {
        "filters": ascend(_sums(extractor, "conv2"), 50, spec),
        "neurons": ascend(_values(extractor, "relu"), 100, spec),
        "classes": ascend(_values(extractor, "fc2"), 10, spec),
        "classes-penalised": ascend(_values(extractor, "fc2"), 10, spec, penalty=PENALTY),
    }
    degrees = {
        name: climb(normalised(pictures, spec)).diagonal()
        for (name, pictures), climb in zip(
            climbed.items(),
            (
                _sums(extractor, "conv2"),
                _values(extractor, "relu"),
                *[_values(extractor, "fc2")] * 2,
            ),
            strict=True,
        )
    }
    typical = _typical(extractor, trained)
    certain = {
        name: module(normalised(climbed[name], spec)).softmax(1).diagonal().tolist()
        for name in ("classes", "classes-penalised")
    }
    ink = {name: climbed[name].mean((1, 2, 3)).tolist() for name in certain}
    network.write(
        NAME,
        options.folder,
        results={
            **trained.record,
            "penalty": PENALTY,
            "steps": _STEPS,
            "degree_of_activation": {
                k: [round(v, 3) for v in d.tolist()] for k, d in degrees.items()
            },
            "degree_on_digits": [round(value, 3) for value in typical.tolist()],
            "probability": certain,
            "mean_pixel": ink,
        },
        columns=["unit", "number", "degree_of_activation"],
        rows=(
            [name, number, f"{degree:.3f}"]
            for name, values in degrees.items()
            for number, degree in enumerate(values.tolist())
        ),
        pictures={
            "filters.png": network.sheet(climbed["filters"][:, 0], 10),
            "neurons.png": network.sheet(climbed["neurons"][:, 0], 10),
            "classes.png": network.sheet(
                torch.cat([climbed["classes"], climbed["classes-penalised"]])[:, 0], 10
            ),
        },
        steps=_STEPS,
        degree=float(degrees["filters"].mean()),
        typical=float(typical.mean()),
        penalty=PENALTY,
        classes=_rows(certain, ink),
    )
    return True


Activations = Callable[[torch.Tensor], torch.Tensor]
"""Maps normalised pictures [N, 1, 28, 28] to the activations [N, units] of units."""


def ascend(
    activations: Activations, units: int, spec: InputSpec, *, penalty: float = 0.0
) -> torch.Tensor:
    """Return for each unit the picture that gradient ascent finds for it.

    Erhan et al., Visualizing higher-layer features of a deep network, 2009. All
    units climb at once, each its own picture of the batch.

    Args:
        activations: of the units.
        units: how many there are.
        spec: how the network's input is normalised.
        penalty: subtracted for the sum of the pixels' values (L1).

    Returns:
        float32 [units, channels, height, width], 0 to 1.
    """
    pictures = torch.full((units, spec.channels, spec.height, spec.width), _GREY)
    pictures.requires_grad_()
    optimizer = torch.optim.Adam([pictures], _RATE, maximize=True)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        height = activations(normalised(pictures, spec)).diagonal().sum()
        torch.autograd.backward(height - penalty * pictures.abs().sum())
        optimizer.step()
        with torch.no_grad():
            pictures.clamp_(0, 1)
    return pictures.detach()


def normalised(pictures: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """Turn pictures of 0 to 1 into a network's input."""
    mean = torch.tensor(spec.mean).view(-1, 1, 1)
    std = torch.tensor(spec.std).view(-1, 1, 1)
    return (pictures - mean) / std


def _sums(extractor: nn.Module, layer: str) -> Activations:
    return lambda images: extractor(images)[layer].sum((2, 3))


def _values(extractor: nn.Module, layer: str) -> Activations:
    return lambda images: extractor(images)[layer]


@torch.inference_mode()
def _typical(extractor: nn.Module, trained: network.Trained) -> torch.Tensor:
    """Return the largest degree of activation of each filter over the test digits."""
    degrees = _sums(extractor, "conv2")
    return torch.cat([degrees(batch.images) for batch in trained.test.all()]).amax(0)


def _rows(certain: dict[str, list[float]], ink: dict[str, list[float]]) -> str:
    return "\n".join(
        f"| {number} | {free:.4f} | {paper:.3f} | {penalised:.4f} | {less:.3f} |"
        for number, (free, penalised, paper, less) in enumerate(
            zip(*certain.values(), *ink.values(), strict=True)
        )
    )
