"""What a pretrained network is worth for new classes, and the head to begin with.

The last stages of a network may know its old classes and little else (Kornblith et al.,
Why do better loss functions lead to less transferable features?, NeurIPS 2021). So its
stages are compared: a ridge classifier judges each by the mean of its maps over the
picture, every picture left out once. What comes after the best stage is to learn; the
stages up to it can stay as they are.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.preprocessing import StandardScaler
from torch import nn

from foveate_train.data.batches import Batch, Data
from foveate_train.errors import WeightsError
from foveate_train.stages import Rest, first, stages

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_PENALTIES = (1e1, 1e2, 1e3, 1e4, 1e5)
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
_FOLDS = 3


@dataclass(frozen=True)
class Start:
    """Where fine-tuning starts.

    Attributes:
        frozen: the stages up to the best, by name; none where the network does not
            begin with a chain of stages that is long enough.
        solved: whether the head is the solution of a logistic regression.
        suffices: whether what the head is given tells the classes apart better than
            any stage does.
    """

    frozen: tuple[str, ...]
    solved: bool
    suffices: bool


def begin(
    module: nn.Module, head: Collection[str], data: Data, frozen: tuple[str, ...] | None = None
) -> Start:
    """Compare a network's stages on pictures, and set its new head to a first solution.

    Args:
        module: in evaluation mode.
        head: the parameters of the head, by name.
        data: the pictures.
        frozen: the stages that stay as they are, which then are not compared; None for
            what the comparison says.

    Raises:
        WeightsError: the network makes numbers that are not finite.
    """
    device = next(module.parameters()).device
    images = next(data.all()).images[:2].to(device)
    names = _stages_before(module, head, images)
    linear = _linear_head(module, head, images)
    features, given, labels = _look(module, names, linear, data.all())
    # To train what comes after a stage of the first half would take longest, and few
    # kinds of pictures would gain by it.
    errors = {
        name: _error(features[name], labels)
        for number, name in enumerate(names)
        if frozen is None
        and number >= len(names) // 2
        and _can_be_cut(module, names[: number + 1], images)
    }
    best = min(errors, key=errors.__getitem__, default=None)
    if linear is None or given is None:
        suffices = False
    else:
        _solve(linear, given, labels)
        suffices = best is not None and _error(given, labels) <= errors[best]
    if frozen is None:
        frozen = () if best is None else tuple(names[: names.index(best) + 1])
    return Start(frozen, solved=linear is not None, suffices=suffices)


def _stages_before(module: nn.Module, head: Collection[str], images: torch.Tensor) -> list[str]:
    """Return the names of the stages before the head that make maps or tokens."""

    def is_before(name: str) -> bool:
        return not any(key.startswith(f"{name}.") for key in head)

    names = list(takewhile(is_before, stages(module, images)))
    with torch.inference_mode():
        while names and first(module, names, images).ndim < 3:
            names.pop()
    return names


@torch.inference_mode()
def _can_be_cut(module: nn.Module, names: Sequence[str], images: torch.Tensor) -> bool:
    """Return whether what follows some stages needs nothing but what they made."""
    cut = Rest(module, names)(first(module, names, images))
    return torch.allclose(cut, module(images), rtol=1e-3, atol=1e-3)


def _linear_head(
    module: nn.Module, head: Collection[str], images: torch.Tensor
) -> nn.Linear | None:
    """Return the head if it is one linear layer whose output is the network's."""
    for name in {key.rpartition(".")[0] for key in head}:
        part = module.get_submodule(name)
        if isinstance(part, nn.Linear):
            made: list[torch.Tensor] = []
            with (
                part.register_forward_hook(lambda *call, made=made: made.append(call[-1])),
                torch.inference_mode(),
            ):
                logits = module(images)
            if len(made) == 1 and torch.equal(made[0], logits):
                return part
    return None


@torch.inference_mode()
def _look(
    module: nn.Module, names: Sequence[str], head: nn.Linear | None, batches: Iterable[Batch]
) -> tuple[dict[str, Floats], Floats | None, Integers]:
    """Return the means of what each stage makes, what the head is given, and the labels."""
    device = next(module.parameters()).device
    rest = Rest(module, names)
    parts: dict[str, list[torch.Tensor]] = {}
    labels = []
    for batch in batches:
        made = batch.images.to(device)
        for name in names:
            made = first(module, [name], made)
            parts.setdefault(name, []).append(_mean(made))
        if head is not None:
            seen = parts.setdefault("", [])
            with head.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0])):
                rest(made)
        labels.append(batch.labels)
    found = {name: torch.cat(part).float().cpu().numpy() for name, part in parts.items()}
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise WeightsError(
                f"{name or 'the last stage'} makes numbers of the pictures that are not finite; "
                "the weights are damaged, or the input's mean and std are wrong"
            )
    given = found.pop("", None)
    return found, given, torch.cat(labels).numpy()


def _mean(made: torch.Tensor) -> torch.Tensor:
    """Return the means over maps [N, C, h, w] or [N, h, w, C], or over tokens [N, T, C].

    In the second half of a network there are more channels than columns.
    """
    if made.ndim == 4:
        return made.mean((2, 3) if made.shape[1] >= made.shape[3] else (1, 2))
    return made.flatten(1, -2).mean(1)


def _error(features: Floats, labels: Integers) -> float:
    """Return a ridge classifier's mean square error for pictures that it has not seen.

    Every picture is left out once, in closed form. Classes count alike.
    """
    standard = StandardScaler().fit_transform(features)
    ridge = RidgeClassifierCV(alphas=_PENALTIES, class_weight="balanced").fit(standard, labels)
    return -float(ridge.best_score_)


def _solve(head: nn.Linear, given: Floats, labels: Integers) -> None:
    """Set a head to the solution of a regularised logistic regression on what it is given.

    The strength is chosen by cross-validation. Classes count alike.
    """
    mean, scale = given.mean(0), given.std() or 1.0
    standard = (given - mean) / scale
    fitted = _regression(_strength(standard, labels)).fit(standard, labels)
    weight, bias = fitted.coef_ / scale, fitted.intercept_
    if len(weight) == 1:  # of two classes scikit-learn gives the difference alone
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(bias - weight @ mean))


def _strength(standard: Floats, labels: Integers) -> float:
    folds = min(_FOLDS, int(np.bincount(labels).min()))
    if folds < 2:
        return _STRENGTHS[1]
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    scores = [
        cross_val_score(
            _regression(strength), standard, labels, cv=split, scoring="neg_log_loss"
        ).mean()
        for strength in _STRENGTHS
    ]
    return _STRENGTHS[int(np.argmax(scores))]


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
