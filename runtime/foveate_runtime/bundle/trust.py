"""The part of a manifest on the trust in the answers of a variant."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Outlier = Literal["combined", "gen", "energy", "max_logit"]
"""A score of how unlike the calibration pictures a picture is; see `trust.outliers`."""

SetMethod = Literal["lac", "raps"]
"""How a prediction set is chosen; see `trust.sets`."""

DriftFigure = Literal["confidence", "entropy", "ood_percentile", "set_size"]
"""The figures of answers that are monitored; see `trust.drift`."""

Coverage = Annotated[float, Field(gt=0, lt=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Raps(_Model):
    """The threshold of RAPS, with its regularisation.

    Every rank past `free` adds `weight` to the score of a class. `images` pictures
    gave the threshold, others the regularisation.
    """

    threshold: Annotated[float, Field(ge=0)]
    weight: Annotated[float, Field(ge=0)]
    free: Annotated[int, Field(ge=1)]
    images: Annotated[int, Field(gt=0)]


class SetThresholds(_Model):
    """What a class's score may be at most to belong to the prediction set of a coverage."""

    coverage: Coverage
    lac: Annotated[float, Field(ge=0, le=1)]
    raps: Raps | None = None


class Histogram(_Model):
    """How values of the calibration pictures are distributed.

    `shares` are those of the bins that `edges` part: below the first, between two, above the
    last. A value at an edge belongs to the bin below it.
    """

    edges: Annotated[tuple[float, ...], Field(min_length=1)]
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...]

    @model_validator(mode="after")
    def _bins_fit(self) -> Self:
        if len(self.shares) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges part {len(self.edges) + 1} bins")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("edges must grow")
        return self


class Trust(_Model):
    """The calibration of a variant's logits on labelled pictures.

    `digest` is `sha256:<hex>` of the pictures as the classifier gets them, with their
    labels. `temperatures` divide the logits: one, one for each label of independent
    labels, or none where no picture was classified wrong, so that none can be found.
    `outliers` holds, by score, its 0th to 100th percentile over the pictures, and
    `outlier` names the one that answers use. `drift` is what answers are compared with, by
    figure (`foveate_runtime.trust.drift`); empty in older bundles.
    """

    data: str
    images: Annotated[int, Field(gt=0)]
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    created: datetime
    temperatures: tuple[Annotated[float, Field(gt=0)], ...]
    sets: Annotated[tuple[SetThresholds, ...], Field(min_length=1)]
    outlier: Outlier
    outliers: dict[Outlier, Annotated[tuple[float, ...], Field(min_length=101, max_length=101)]]
    drift: dict[DriftFigure, Histogram] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _tables_are_there(self) -> Self:
        needed = ("combined", "gen", "energy") if self.outlier == "combined" else (self.outlier,)
        for name in needed:
            if name not in self.outliers:
                raise ValueError(f"outliers: {name!r} is used and has no table")
        return self


class Policy(_Model):
    """When a model abstains from an answer; a rule that is None never applies.

    It abstains where the out-of-distribution percentile is above `abstain_above`, and
    where the prediction set has more classes than `abstain_set_larger_than`.
    """

    abstain_above: Annotated[float, Field(ge=0, le=100)] | None = None
    abstain_set_larger_than: Annotated[int, Field(ge=0)] | None = None
