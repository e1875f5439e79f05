"""`foveate visualize fool`: pictures that a network takes for what they are not."""

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch.nn import functional

from foveate_train.ascent import normalised
from foveate_train.drawing import overlay, sheet
from foveate_train.options import As, Command
from foveate_train.progress import tracked
from foveate_train.visualize.cam import explained
from foveate_train.visualize.options import PictureOptions
from foveate_train.visualize.subject import Subject, shortened

_SURE = 0.99
_MOST_STEPS = 500
_RATE = 0.05


class FoolOptions(PictureOptions):
    """Draw pictures that a network takes for what they are not, with its maps before and after.

    Each picture is moved by one step along the sign of the gradient, away from its class or, with
    --class, towards that one; and noise is moved until it is called the class --noise with 99 %.
    A map is Grad-CAM of the best class. What is judged has whole pixel values of 0 to 255.
    fool-PICTURE-after.npy holds [channels, height, width], 0 to 1.

        foveate visualize fool package:efficientnet_lite0 cat.jpg --noise tabby --out fool
    """

    class_: Annotated[str | None, As("CLASS", names=("--class",))] = None
    """The number or the label of the class that the pictures are to be taken for"""
    noise: Annotated[str, As("CLASS")] = "0"
    """The number or the label of the class that noise is to be called"""
    step: Annotated[float, Field(gt=0, le=1)] = 0.02
    """How far each value of a pixel is moved, of 1"""


class _Seen(NamedTuple):
    """A picture [C, H, W], 0 to 1, its colours, its best class and where that is seen."""

    pixels: torch.Tensor
    colours: torch.Tensor
    overlaid: torch.Tensor
    label: str
    probability: float


def run(options: FoolOptions) -> int:
    """Fool and draw; return 0.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    subject = options.subject()
    target = None if options.class_ is None else subject.class_number(options.class_)
    wanted = subject.class_number(options.noise, "--noise")
    found = {}
    for picture in options.pictures(subject):
        pixels = subject.pixels(subject.batch([picture]))
        found[picture.name] = (pixels, stepped(subject, pixels, options.step, target))
    noise = torch.rand(subject.input_shape).to(subject.device)
    found["noise"] = (noise, called(subject, noise, wanted))
    rows, names, kept = [], [], {}
    for name, pair in found.items():
        before, after = (_seen(subject, pixels) for pixels in pair)
        change = after.colours - before.colours
        change = 0.5 + change / (2 * change.abs().amax().clamp(min=1 / 255))
        rows.append([before.colours, before.overlaid, change, after.colours, after.overlaid])
        names.append(
            f"{shortened(name)}\n{shortened(before.label)} {before.probability:.1%}\n"
            f"to {shortened(after.label)} {after.probability:.1%}"
        )
        kept[f"{name}-after"] = after.pixels
        print(
            f"{name}: {before.label} {before.probability:.2%} before, "
            f"{after.label} {after.probability:.2%} after"
        )
    columns = ["before", "its map", "change", "after", "its map"]
    options.keep("fool", sheet(rows, rows=names, columns=columns, cell=1.3), **kept)
    return 0


def stepped(
    subject: Subject, pixels: torch.Tensor, step: float, target: int | None
) -> torch.Tensor:
    """Return pictures [1, C, H, W] after one step of the fast gradient sign method.

    Goodfellow et al., Explaining and harnessing adversarial examples, 2014.

    Args:
        subject: the classifier.
        pixels: 0 to 1.
        step: by how much every value changes.
        target: the class to move towards; None is away from the best one.
    """
    pixels = pixels.clone().requires_grad_()
    logits = subject.module(normalised(pixels, subject.classifier.input))
    number = int(logits[0].argmax()) if target is None else target
    loss = functional.cross_entropy(logits, torch.tensor([number], device=logits.device))
    (gradient,) = torch.autograd.grad(loss, pixels)
    way = gradient.sign() if target is None else -gradient.sign()
    return _whole(pixels.detach() + step * way)


def called(subject: Subject, noise: torch.Tensor, number: int) -> torch.Tensor:
    """Return noise [1, C, H, W] changed until it is called a class with 99 %.

    Nguyen et al., Deep neural networks are easily fooled, 2015, by gradients. After 500 steps
    it is returned as far as it came.
    """
    pixels = noise.clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], _RATE)
    labels = torch.tensor([number], device=noise.device)
    for _ in tracked(range(_MOST_STEPS), "noise"):
        optimizer.zero_grad()
        logits = subject.module(normalised(pixels, subject.classifier.input))
        torch.autograd.backward(functional.cross_entropy(logits, labels))
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
            whole = _whole(pixels)
            judged = subject.module(normalised(whole, subject.classifier.input))
            if float(judged.softmax(1)[0, number]) >= _SURE:
                break
    return _whole(pixels.detach())


def _whole(pixels: torch.Tensor) -> torch.Tensor:
    """Return values of 0 to 1 as a picture of whole values of 0 to 255 holds them."""
    return (pixels.clamp(0, 1) * 255).round() / 255


def _seen(subject: Subject, pixels: torch.Tensor) -> _Seen:
    """Classify a picture [1, C, H, W] and explain its best class."""
    image = normalised(pixels, subject.classifier.input)
    layer = subject.stages()[-1]
    classes, probabilities, maps = explained(subject, image, [layer], ["gradcam"], None)
    (colours,) = subject.shown(image)
    best = maps[layer]["gradcam"][None, :1]
    large = functional.interpolate(best, colours.shape[:2], mode="bilinear")[0, 0]
    label = subject.classifier.labels[classes[0]]
    overlaid = overlay(colours, large)
    return _Seen(pixels[0].cpu(), colours, overlaid, label, float(probabilities[classes[0]]))


COMMAND = Command(name="fool", options=FoolOptions, run=run)
