"""The training loop.

    data = InMemory(images, labels, classifier.input, shift=1)
    training = Training(classifier, data, Settings(epochs=2, seed=0))
    for step in training.steps():
        print(step.number, float(step.loss))
    print(evaluate(training.result.module, test_data))

`steps` does one optimiser step at a time and hands over what happened, so
whoever consumes it reports, evaluates or stops as it likes. `state` and
`restore` carry a run from one process to another between any two steps; it goes
on bit for bit, since the random draws, the rates and the frozen parameters of a
step follow from the seed and the step's number alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import v2

from foveate_train import distributed
from foveate_train.classifier import Classifier
from foveate_train.data.batches import Batch, Data, steps
from foveate_train.data.draws import derive
from foveate_train.settings import Settings
from foveate_train.stages import Rest

# The first rate of a warm-up, as a share of the highest; that of torch's OneCycleLR.
_FIRST_RATE = 1 / 25
# Between these one_cycle moves the momentum; they are OneCycleLR's, too.
_LEAST_MOMENTUM, _MOST_MOMENTUM = 0.85, 0.95


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        number: from 1, over all epochs.
        total: how many steps the run has.
        epoch: from 1.
        ends_epoch: whether this was the epoch's last step.
        images: how many pictures the step used, over all processes.
        loss: the mean loss over them, a scalar still on its device.
    """

    number: int
    total: int
    epoch: int
    ends_epoch: bool
    images: int
    loss: torch.Tensor


@dataclass(frozen=True)
class Backbone:
    """What of a network is pretrained, and how much of it stays as it is.

    Attributes:
        head: the parameters that are new, by name; the others learn as the settings
            for fine-tuning say.
        frozen: the stages that do not learn, by name: a chain from the input on.
        passed: whether the data are what these stages made of the pictures.
    """

    head: frozenset[str]
    frozen: tuple[str, ...] = ()
    passed: bool = False


class Training:
    """One run over a data set, from its first step or from wherever a state says.

    The same seed on the same machine with as many threads gives the same losses.

    Args:
        classifier: its module is trained in place, and moved to `device`.
        data: what to train on.
        settings: the run's settings.
        backbone: what is pretrained; None where nothing is.
        weights: of the classes in the loss; None where they count alike.
        device: where to compute; by default a GPU if there is one.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: Data,
        settings: Settings,
        *,
        backbone: Backbone | None = None,
        weights: Sequence[float] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.settings = settings
        self.device = device or default_device()
        self.number = 0
        self.classifier = classifier
        self.data = data
        self._per_epoch = steps(len(data), settings.batch_size)
        self.total = self._per_epoch * settings.epochs
        self._module = classifier.module.to(memory_format=torch.channels_last).to(self.device)
        self.backbone = backbone
        self._weights = None if weights is None else torch.tensor(weights, device=self.device)
        for name in () if backbone is None else backbone.frozen:
            self._module.get_submodule(name).requires_grad_(requires_grad=False)
        learning = {n: p for n, p in self._module.named_parameters() if p.requires_grad}
        new = learning.keys() if backbone is None else backbone.head
        self._head = [p for name, p in learning.items() if name in new]
        self._backbone = [p for name, p in learning.items() if name not in new]
        self._optimizer = self._make_optimizer()
        self._ema = (
            ModelEmaV3(self._module, settings.ema, use_warmup=True) if settings.ema else None
        )
        self.precision = compute_type(settings, self.device)
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.precision is torch.float16
        )
        self._mix = _mixing(settings, len(classifier.labels))

    @property
    def result(self) -> Classifier:
        """The classifier with the weights to keep: their moving average, if there is one."""
        module = self._module if self._ema is None else self._ema.module
        return replace(self.classifier, module=module)

    @property
    def network(self) -> nn.Module:
        """What the result makes logits with, of data like those that it is trained on."""
        return self._for_the_data(self.result.module)

    def steps(self) -> Iterator[Step]:
        """Do the steps that remain, and yield each."""
        settings = self.settings
        for epoch in range(self.number // self._per_epoch + 1, settings.epochs + 1):
            forward = self._prepared(epoch)
            start = self.number % self._per_epoch
            for batch in self.data.epoch(settings.seed, epoch, settings.batch_size, start=start):
                # For dropout, mixing and other random numbers of the network.
                torch.manual_seed(derive(settings.seed, epoch, self.number, distributed.rank()))
                self._use_train_mode()
                self._set_rates()
                loss = self._step(forward, batch)
                self.number += 1
                ends = self.number % self._per_epoch == 0
                yield Step(self.number, self.total, epoch, ends, batch.total, loss)

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on, of types that weights_only loading takes."""
        return {
            "number": self.number,
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned in a run of the same settings and data."""
        self._module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        self.number = state["number"]

    def _step(self, forward: nn.Module, batch: Batch) -> torch.Tensor:
        """Do one optimiser step; return the mean loss over the batch of all processes."""
        settings = self.settings
        images = batch.images.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        if self._mix is not None:
            images, labels = self._mix(images, labels)
        self._optimizer.zero_grad()
        mean = torch.zeros((), device=self.device)
        for part, truth in zip(
            images.tensor_split(settings.accumulate),
            labels.tensor_split(settings.accumulate),
            strict=True,
        ):
            criterion = partial(
                functional.cross_entropy,
                target=truth,
                weight=self._weights,
                label_smoothing=settings.label_smoothing,
                reduction="sum",
            )
            with torch.autocast(
                self.device.type, self.precision, enabled=self.precision is not torch.float32
            ):
                loss = self.classifier.loss(forward(part), criterion) / batch.total
            # DistributedDataParallel takes the mean of the processes' gradients.
            torch.autograd.backward(self._scaler.scale(loss * distributed.world()))
            mean += loss.detach()
        if settings.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._module.parameters(), settings.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._ema is not None:
            self._ema.update(self._module, self.number + 1)
        return distributed.total(mean)

    def _prepared(self, epoch: int) -> nn.Module:
        """Freeze or unfreeze for an epoch; return the network as it is to be called."""
        for parameter in self._backbone:
            parameter.requires_grad_(epoch > self.settings.frozen_epochs)
        forward = self._for_the_data(self._module)
        if distributed.world() > 1:
            # Wrapped anew each epoch, because the parameters that learn may have changed.
            forward = DistributedDataParallel(forward)
        return cast("nn.Module", torch.compile(forward)) if self.settings.compile else forward

    def _for_the_data(self, module: nn.Module) -> nn.Module:
        """Return a network that begins where the data end."""
        backbone = self.backbone
        return Rest(module, backbone.frozen) if backbone and backbone.passed else module

    def _use_train_mode(self) -> None:
        """Set training mode, but leave a backbone's normalisations as they are in use.

        Their statistics come from far more pictures than a small data set has.
        """
        self._module.train()
        if self.backbone is not None:
            for name in self.backbone.frozen:
                self._module.get_submodule(name).eval()
            for layer in self._module.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser; its groups know their highest rate and their first step.

        Biases, normalisations and what the network itself names do not decay.
        """
        settings = self.settings
        decays = param_groups_weight_decay(
            self._module,
            settings.weight_decay,
            no_weight_decay_list=getattr(self._module, "no_weight_decay", tuple)(),
        )
        # A backbone rises from a low rate when it is unfrozen: Adam's first steps are as long
        # as its rate allows, and from pretrained weights a few of them can undo everything.
        begins = self._per_epoch * settings.frozen_epochs
        unfrozen = {"share": settings.backbone_rate, "begins": begins}
        groups = [
            {**group, **own, "params": [p for p in group["params"] if id(p) in chosen]}
            for own, chosen in (
                ({"share": 1.0, "begins": 0}, set(map(id, self._head))),
                (unfrozen, set(map(id, self._backbone))),
            )
            for group in decays
        ]
        if settings.optimizer == "sgd":
            return torch.optim.SGD(groups, settings.learning_rate, momentum=settings.momentum)
        return torch.optim.AdamW(groups, settings.learning_rate)

    def _set_rates(self) -> None:
        settings = self.settings
        for group in self._optimizer.param_groups:
            begins = group["begins"]
            share, momentum = schedule(settings, self.number - begins, self.total - begins)
            group["lr"] = settings.learning_rate * group["share"] * share
            if settings.schedule == "one_cycle":
                key, value = (
                    ("betas", (momentum, group["betas"][1]))
                    if settings.optimizer == "adamw"
                    else ("momentum", momentum)
                )
                group[key] = value


def schedule(settings: Settings, step: int, steps: int) -> tuple[float, float]:
    """Return the share of the highest rate at a step, from 0, of so many, and one_cycle's momentum.

    The rate rises over the share `warm_up` of the steps, and falls to nothing over
    the others; one_cycle's momentum does the reverse. Before the first step it is 0.
    """
    if step < 0 or settings.schedule == "constant":
        return float(step >= 0), settings.momentum
    rising = round(settings.warm_up * steps)
    if step >= rising:
        share = height = (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2
    else:
        risen = step / rising
        height = (1 - math.cos(math.pi * risen)) / 2 if settings.schedule == "one_cycle" else risen
        share = _FIRST_RATE + (1 - _FIRST_RATE) * height
    return share, _MOST_MOMENTUM - (_MOST_MOMENTUM - _LEAST_MOMENTUM) * height


class Tally(NamedTuple):
    """How many pictures of each class there were, and how many were put into it."""

    seen: tuple[int, ...]
    right: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """The share of all pictures that were right."""
        return sum(self.right) / sum(self.seen)

    def by_class(self, prefix: str, labels: Sequence[str]) -> dict[str, float]:
        """Return the share of each class that was right, by its label with a prefix."""
        return {
            f"{prefix}{label}": right / seen
            for label, seen, right in zip(labels, self.seen, self.right, strict=True)
            if seen
        }


@torch.inference_mode()
def tally(module: nn.Module, data: Data, *, precision: torch.dtype = torch.float32) -> Tally:
    """Count the pictures whose highest logit is their label's.

    The module is left in evaluation mode.
    """
    module.eval()
    device = next(module.parameters()).device
    seen, right = [], []
    for batch in data.all():
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            logits = module(batch.images.to(device))
        seen.append(batch.labels)
        right.append(batch.labels[logits.argmax(1).cpu() == batch.labels])
    counts = (torch.bincount(torch.cat(part), minlength=logits.shape[1]) for part in (seen, right))
    return Tally(*(tuple(count.tolist()) for count in counts))


def evaluate(module: nn.Module, data: Data) -> float:
    """Return the share of pictures whose highest logit is their label's.

    The module is left in evaluation mode.
    """
    return tally(module, data).accuracy


def default_device() -> torch.device:
    """Return the current GPU if there is one, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def compute_type(settings: Settings, device: torch.device) -> torch.dtype:
    """Return the type that a network computes in; its weights are float32 in any case."""
    if settings.precision != "auto":
        dtype: torch.dtype = getattr(torch, settings.precision)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    # Where a processor does not multiply bfloat16 itself, it is slow. x86's names, and Arm's:
    able = torch.cpu.get_capabilities()
    native = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def _mixing(settings: Settings, classes: int) -> v2.Transform | None:
    """Return mixup, CutMix, or a choice of the two, drawn anew for each batch."""
    mixing = [
        transform(alpha=alpha, num_classes=classes)
        for transform, alpha in ((v2.MixUp, settings.mixup), (v2.CutMix, settings.cutmix))
        if alpha > 0
    ]
    return v2.RandomChoice(mixing) if mixing else None
