"""The training loop.

    data = InMemory(images, labels, classifier.input, shift=1)
    training = Training(classifier, data, Settings(epochs=2, seed=0))
    for step in training.steps():
        print(step.number, float(step.loss))
    print(evaluate(training.result.module, test_data))

`steps` does one optimiser step at a time and hands over what happened, so
whoever consumes it reports, evaluates or stops as it likes. `state` and
`restore` carry a run from one process to another between any two steps; it goes
on bit for bit, since the random draws of a step depend on the seed and the
step's number alone.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models import Inception3, InceptionOutputs
from torchvision.transforms import v2

from foveate_train import distributed
from foveate_train.classifier import Classifier
from foveate_train.data.batches import Batch, Data, steps
from foveate_train.data.draws import derive
from foveate_train.settings import Settings

# The first rate of a warm-up, as a share of the highest; OneCycleLR's own choice.
_FIRST_RATE = 1 / 25
# The weight of Inception V3's auxiliary loss, as its authors trained it.
_AUXILIARY = 0.4


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


class Training:
    """One run over a data set, from its first step or from wherever a state says.

    The random draws of every step, and so the weights, follow from the
    settings' seed; the same seed on the same machine with as many threads gives
    the same losses.

    Args:
        classifier: its module is trained in place, and moved to `device`.
        data: what to train on.
        settings: the run's settings.
        head: the parameters of a head that is new, by name; the others are the
            backbone's and learn as the settings for fine-tuning say. None where
            there is no such difference.
        device: where to compute; by default a GPU if there is one.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: Data,
        settings: Settings,
        *,
        head: Collection[str] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.settings = settings
        self.device = device or default_device()
        self.number = 0
        self._classifier = classifier
        self._data = data
        self._per_epoch = steps(len(data), settings.batch_size)
        self.total = self._per_epoch * settings.epochs
        self._module = classifier.module.to(memory_format=torch.channels_last).to(self.device)
        _use_auxiliary_head(self._module)
        self._backbone = (
            []
            if head is None
            else [p for name, p in self._module.named_parameters() if name not in head]
        )
        self._normalisations = (
            []
            if head is None
            else [layer for layer in self._module.modules() if isinstance(layer, _BatchNorm)]
        )
        self._learners = self._make_learners(head)
        self._ema = None if settings.ema is None else _moving_average(self._module, settings.ema)
        self.precision = compute_type(settings, self.device)
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.precision is torch.float16
        )
        self._mix = _mixing(settings, len(classifier.labels))

    @property
    def result(self) -> Classifier:
        """The classifier with the weights to keep: their moving average, if there is one."""
        module = self._module if self._ema is None else self._ema.module
        return replace(self._classifier, module=module)

    def learning_rates(self) -> list[float]:
        """Return the rate of the next step: one value, or the head's and the backbone's."""
        return [
            float(learner.optimizer.param_groups[0]["lr"]) if self.number >= learner.begins else 0.0
            for learner in self._learners
        ]

    def steps(self) -> Iterator[Step]:
        """Do the steps that remain, and hand over what each did."""
        settings = self.settings
        for epoch in range(self.number // self._per_epoch + 1, settings.epochs + 1):
            forward = self._prepared(epoch)
            start = self.number % self._per_epoch
            for batch in self._data.epoch(settings.seed, epoch, settings.batch_size, start=start):
                # For dropout, mixing and whatever else the network draws itself.
                torch.manual_seed(derive(settings.seed, epoch, self.number, distributed.rank()))
                self._train_mode()
                loss = self._step(forward, batch)
                self.number += 1
                ends = self.number % self._per_epoch == 0
                yield Step(self.number, self.total, epoch, ends, batch.total, loss)

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on, of types that weights_only loading takes."""
        return {
            "number": self.number,
            "module": self._module.state_dict(),
            "optimizers": [learner.optimizer.state_dict() for learner in self._learners],
            "schedules": [learner.schedule.state_dict() for learner in self._learners],
            "scaler": self._scaler.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned in a run of the same settings and data."""
        self._module.load_state_dict(state["module"])
        for learner, optimizer, schedule in zip(
            self._learners, state["optimizers"], state["schedules"], strict=True
        ):
            learner.optimizer.load_state_dict(optimizer)
            learner.schedule.load_state_dict(schedule)
        self._scaler.load_state_dict(state["scaler"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        self.number = state["number"]

    def _step(self, forward: nn.Module, batch: Batch) -> torch.Tensor:
        """Do one optimiser step; return the mean loss over the batch of all processes."""
        images = batch.images.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        if self._mix is not None:
            images, labels = self._mix(images, labels)
        learning = [learner for learner in self._learners if self.number >= learner.begins]
        for learner in learning:
            learner.optimizer.zero_grad()
        mean = torch.zeros((), device=self.device)
        for part, truth in zip(
            images.tensor_split(self.settings.accumulate),
            labels.tensor_split(self.settings.accumulate),
            strict=True,
        ):
            share = len(part) / batch.total
            with torch.autocast(
                self.device.type, self.precision, enabled=self.precision is not torch.float32
            ):
                loss = share * self._loss(forward(part), truth)
            # DistributedDataParallel takes the mean of the processes' gradients.
            torch.autograd.backward(self._scaler.scale(loss * distributed.world()))
            mean += loss.detach()
        if self.settings.clip_norm is not None:
            for learner in learning:
                self._scaler.unscale_(learner.optimizer)
            nn.utils.clip_grad_norm_(self._module.parameters(), self.settings.clip_norm)
        for learner in learning:
            self._scaler.step(learner.optimizer)
            learner.schedule.step()
        self._scaler.update()
        if self._ema is not None:
            self._ema.update_parameters(self._module)
        return distributed.total(mean)

    def _loss(self, output: torch.Tensor | InceptionOutputs, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy, with the auxiliary head's where there is one."""
        if isinstance(output, InceptionOutputs):
            return self._loss(output.logits, labels) + _AUXILIARY * self._loss(
                output.aux_logits, labels
            )
        return functional.cross_entropy(
            output, labels, label_smoothing=self.settings.label_smoothing
        )

    def _prepared(self, epoch: int) -> nn.Module:
        """Freeze or unfreeze for an epoch; return the network as it is to be called."""
        for parameter in self._backbone:
            parameter.requires_grad_(epoch > self.settings.frozen_epochs)
        forward = self._module
        if distributed.world() > 1:
            # Wrapped anew each epoch, because the parameters that learn may have changed.
            forward = DistributedDataParallel(forward)
        return cast("nn.Module", torch.compile(forward)) if self.settings.compile else forward

    def _train_mode(self) -> None:
        """Set training mode, but leave a backbone's normalisations as they are in use.

        Their statistics come from far more pictures than a small data set has.
        """
        self._module.train()
        for layer in self._normalisations:
            layer.eval()

    def _make_learners(self, head: Collection[str] | None) -> "list[_Learner]":
        settings = self.settings
        rate = settings.learning_rate
        if head is None:
            return [_Learner.make(self._module.parameters(), rate, settings, 0, self.total)]
        own = [p for name, p in self._module.named_parameters() if name in head]
        learners = [_Learner.make(own, rate, settings, 0, self.total)]
        # A backbone rises from a low rate when it is unfrozen: Adam's first steps are as long
        # as its rate allows, and from pretrained weights a few of them can undo everything.
        begins = self._per_epoch * settings.frozen_epochs
        if self._backbone and begins < self.total:
            rate *= settings.backbone_rate
            learners.append(_Learner.make(self._backbone, rate, settings, begins, self.total))
        return learners


@dataclass(frozen=True)
class _Learner:
    """Parameters that learn together, from step `begins` on, at the rate of their own schedule."""

    optimizer: torch.optim.Optimizer
    schedule: lr_scheduler.LRScheduler
    begins: int

    @classmethod
    def make(
        cls,
        parameters: Iterable[nn.Parameter],
        rate: float,
        settings: Settings,
        begins: int,
        ends: int,
    ) -> Self:
        """Return the learner of `parameters` from step `begins` to step `ends`."""
        optimizer = _optimizer(parameters, rate, settings)
        return cls(optimizer, _schedule(optimizer, rate, settings, ends - begins), begins)


def _optimizer(
    parameters: Iterable[nn.Parameter], rate: float, settings: Settings
) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(parameters, rate, weight_decay=settings.weight_decay)


def _schedule(
    optimizer: torch.optim.Optimizer, rate: float, settings: Settings, steps: int
) -> lr_scheduler.LRScheduler:
    if settings.schedule == "constant":
        return lr_scheduler.ConstantLR(optimizer, factor=1, total_iters=0)
    # Rising takes a step and falling another, however short the run.
    total = max(steps, 2)
    rising = max(settings.warm_up, min(1.0, 2 / total))
    if settings.schedule == "one_cycle":
        return lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total + 1, pct_start=rising)
    first = max(1, round(settings.warm_up * total))
    rise = lr_scheduler.LinearLR(optimizer, _FIRST_RATE, total_iters=first)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, max(1, total - first))
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], [first])


@torch.inference_mode()
def evaluate(module: nn.Module, data: Data, *, precision: torch.dtype = torch.float32) -> float:
    """Return the share of pictures whose highest logit is their label's.

    The module is left in evaluation mode.
    """
    module.eval()
    device = next(module.parameters()).device
    right = 0
    for batch in data.all():
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            logits = module(batch.images.to(device))
        right += int((logits.argmax(1) == batch.labels.to(device)).sum())
    return right / len(data)


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
    return torch.bfloat16 if native_bfloat16() else torch.float32


def native_bfloat16() -> bool:
    """Tell whether the processor multiplies bfloat16 itself; where it does not, it is slow."""
    capabilities = torch.cpu.get_capabilities()
    # The names are those of x86 and of Arm.
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _mixing(settings: Settings, classes: int) -> v2.Transform | None:
    """Return mixup, CutMix, or a choice of the two, drawn anew for each batch."""
    mixing = [
        transform(alpha=alpha, num_classes=classes)
        for transform, alpha in ((v2.MixUp, settings.mixup), (v2.CutMix, settings.cutmix))
        if alpha > 0
    ]
    return v2.RandomChoice(mixing) if mixing else None


def _moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """Return an average of weights and statistics that forgets its beginning sooner.

    After n steps its decay is (1 + n) / (10 + n), until that reaches `decay`.
    """

    def average(kept: Any, current: Any, steps: Any) -> None:
        now = min(decay, float((1 + steps) / (10 + steps)))
        get_ema_multi_avg_fn(now)(kept, current, steps)  # type: ignore[no-untyped-call]

    return AveragedModel(module, multi_avg_fn=average, use_buffers=True)


def _use_auxiliary_head(module: nn.Module) -> None:
    """Have Inception V3 compute its auxiliary logits in training; in use it gives one answer."""
    if isinstance(module, Inception3) and module.AuxLogits is not None:
        module.aux_logits = True
