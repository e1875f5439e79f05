"""Every setting of a training run, in one place."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from foveate_train.errors import SettingsError

ModelT = TypeVar("ModelT", bound=BaseModel)
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Settings(BaseModel):
    """Every setting of a training run, with its limits.

    The defaults are those at which `foveate:convnet4` passes 99 % on MNIST's
    test set after one epoch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    epochs: Annotated[int, Field(ge=1)] = 1
    """How often every picture is seen."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Pictures in one optimiser step, over all processes."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """A batch is computed in this many parts, for less memory."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """All random draws follow from it."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov & Hutter, 2019) or stochastic gradient descent."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 5e-3
    """The highest of the schedule."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """one_cycle is that of Smith & Topin, Super-Convergence, 2018; cosine rises
    in a line and falls with the cosine (Loshchilov & Hutter, SGDR, 2017)."""
    warm_up: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The share of all steps over which the learning rate rises to its highest."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd; one_cycle moves it between 0.85 and 0.95."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Of all parameters but biases and those of normalisations."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradients are scaled down to this norm, over all parameters together."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of the target that is spread over all classes."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The decay of an exponential moving average of the weights, which is what is
    evaluated and kept; it starts low and approaches this value (timm's ModelEmaV3)."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Training ends when the validation accuracy has not risen for this many epochs."""

    shift: Annotated[int, Field(ge=0)] = 1
    """Data in memory: each picture is moved by up to this many pixels each way."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Image folders: the least share of a picture that a random crop takes."""
    flip: bool = True
    """Image folders: half of the pictures are mirrored left to right."""
    policy: Literal["none", "randaugment", "trivialaugment", "augmix"] = "none"
    """Image folders: further random changes, as torchvision implements them."""
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Image folders: the probability that a rectangle is erased."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """The alpha of mixup (Zhang et al., 2018); 0 is without."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """The alpha of CutMix (Yun et al., 2019); with both, each batch draws one."""

    frozen_epochs: Annotated[int, Field(ge=0)] = 0
    """Fine-tuning: for so many epochs only the new head learns."""
    backbone_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Fine-tuning: the backbone's highest learning rate, as a share of the head's."""

    precision: Precision = "auto"
    """auto takes bfloat16 or float16 where the device multiplies it natively."""
    compile: bool = False
    """Compile the network with torch.compile."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.accumulate > self.batch_size // 2:
            raise ValueError(
                f"--accumulate {self.accumulate} leaves less than 2 of the "
                f"--batch-size {self.batch_size} pictures to a part"
            )
        if self.frozen_epochs > self.epochs:
            raise ValueError(
                f"--frozen-epochs {self.frozen_epochs} is above --epochs {self.epochs}"
            )
        return self


def checked(model: type[ModelT], values: Mapping[str, object]) -> ModelT:
    """Return a model of these values, which a command line gave.

    Raises:
        SettingsError: a value is outside its limits, or there is no such field;
            the message names the option.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SettingsError(
            "; ".join(
                f"--{str(e['loc'][0]).replace('_', '-')} {e['input']}: {e['msg']}"
                if e["loc"]
                else str(e["ctx"]["error"])
                for e in error.errors()
            )
        ) from error
