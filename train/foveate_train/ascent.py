"""Pictures that units of a network answer to most, by gradient ascent."""

from collections.abc import Callable

import torch

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.progress import tracked

STEPS = 200
GREY = 0.5
"""The shade that an ascent begins with."""
_RATE = 0.05
_WAVE = 0.25
"""How far a step moves the shades, against one by pixels."""

Activations = Callable[[torch.Tensor], torch.Tensor]
"""Maps normalised pictures [N, C, H, W] to the activations [N, units] of units."""


def ascend(
    activations: Activations,
    units: int,
    spec: InputSpec,
    *,
    penalty: float = 0.0,
    variation: float = 0.0,
    side: int | None = None,
    jitter: int = 0,
    frequency: bool = False,
    steps: int = STEPS,
    seed: int = 0,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Return for each unit the picture that gradient ascent finds for it.

    Erhan et al., Visualizing higher-layer features of a deep network, 2009. All
    units climb at once, each its own picture of the batch.

    Args:
        activations: of the units.
        units: how many there are.
        spec: how the network's input is normalised.
        penalty: subtracted for the sum of the pixels' values (L1).
        variation: subtracted for the sum of the differences between neighbouring pixels
            (Mahendran & Vedaldi, Understanding deep image representations by inverting
            them, 2015, with the exponent 1).
        side: the height and width of the pictures, where it is not that of `spec`.
        jitter: before each step the pictures are rolled by up to this many pixels each
            way, against noise (Mordvintsev et al., Inceptionism, 2015).
        frequency: climb by the pictures' waves instead of their pixels, with long waves
            the faster ones (Olah et al., Feature visualization, 2017).
        steps: how many.
        seed: of the jitter.
        device: that of the network; None is the processor.

    Returns:
        float32 [units, channels, height, width], 0 to 1.
    """
    size = (side, side) if side else (spec.height, spec.width)
    shape = (units, spec.channels, *size)
    drawn = _Waves(shape, device) if frequency else _Pixels(shape, device)
    optimizer = torch.optim.Adam([drawn.values], _RATE, maximize=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in tracked(range(steps), "gradient ascent"):
        optimizer.zero_grad()
        pictures = drawn.pictures()
        moved = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
        seen = pictures.roll(moved, (2, 3)) if jitter else pictures
        height = (
            activations(normalised(seen, spec)).diagonal().sum() - penalty * pictures.abs().sum()
        )
        if variation:
            height = height - variation * differences(pictures)
        torch.autograd.backward(height)
        optimizer.step()
        drawn.limit()
    return drawn.pictures().detach()


class _Pixels:
    """Pictures by their pixels, grey at first."""

    def __init__(self, shape: tuple[int, ...], device: torch.device | None) -> None:
        self.values = torch.full(shape, GREY, device=device).requires_grad_()

    def pictures(self) -> torch.Tensor:
        return self.values

    @torch.no_grad()
    def limit(self) -> None:
        self.values.clamp_(0, 1)


class _Waves:
    """Pictures by the real and imaginary parts of their waves; all are 0, so grey, at first."""

    def __init__(self, shape: tuple[int, ...], device: torch.device | None) -> None:
        *batch, height, width = shape
        self._size = (height, width)
        down, across = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
        lengths = torch.hypot(down[:, None], across).clamp(min=1 / max(height, width))
        # A step changes a wave in proportion to its length, as in photographs.
        self._scale = (_WAVE * (height * width) ** 0.5 / lengths).to(device)
        bins = (*batch, *lengths.shape, 2)
        self.values = torch.zeros(bins, device=device).requires_grad_()

    def pictures(self) -> torch.Tensor:
        waves = torch.view_as_complex(self.values) * self._scale
        shades: torch.Tensor = torch.fft.irfft2(waves, s=self._size).sigmoid()
        return shades

    def limit(self) -> None:
        pass


def differences(pictures: torch.Tensor) -> torch.Tensor:
    """Return the sum of the differences between neighbouring pixels (total variation)."""
    return pictures.diff(dim=2).abs().sum() + pictures.diff(dim=3).abs().sum()


def normalised(pictures: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """Turn pictures of 0 to 1 into a network's input."""
    mean, std = (
        torch.tensor(values, device=pictures.device).view(-1, 1, 1)
        for values in (spec.mean, spec.std)
    )
    return (pictures - mean) / std
