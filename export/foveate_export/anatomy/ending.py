"""What stands at the end of a network, and how its outputs become a bundle's logits and scores.

The graph of a bundle returns logits, and the server makes scores of them by the
manifest's `scores`. Many networks end in that softmax or sigmoid themselves. It
is taken off, so that it is not applied twice and maps explain what stood before
it. The operator at the end says what it is, and the numbers must confirm it:
with z what the operator took, its outputs must be softmax(z) or sigmoid(z) on
every picture. Probabilities of another origin are served by their logarithm,
whose softmax they are. Needs no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveate_export.errors import ExportError, UsageError
from foveate_export.pictures import Pictures, noise
from foveate_runtime.bundle.manifest import InputSpec, Scores
from foveate_runtime.bundle.scores import score

Array = NDArray[np.float32]
Form = Literal["as is", "logarithm", "log-odds"]

TINY = float(np.finfo(np.float32).tiny)
"""Taken for a probability of 0, which has no logarithm."""

SIDES = (-0.5, 0.5)
"""The logits of two classes, as factors of the one output z: their softmax is sigmoid(z)."""

_PICTURES, _NOISE = 8, 4
"""The pictures that decide: fewer might lie in a range by chance."""

_AGREEING = {"fp32": 1e-3, "fp16": 2e-2}
"""Of a picture's largest score, by what the network computes in: float16 rounds a
logit of 16 to within 1/128, and engines round at other places."""

_SUMMING = 2e-3
"""How far from 1 the probabilities of a thousand classes in float16 may add up to."""

_ROUNDING = 1e-6
_SHARES = "lie between 0 and 1"
_PERCENT = 100
_SCALING = ("mul", "rmul", "div", "true_divide", "truediv")
"""The operators that make percentages; one that cuts off below 0 gives such logits by itself."""
_SQUASHING = ("tanh", "softsign")


@dataclass(frozen=True)
class Normaliser:
    """What makes scores of logits at the end of a network; `logarithm` returns theirs."""

    name: str
    scores: Scores
    logarithm: bool = False

    def scored(self, outputs: Array) -> Array:
        """Return the scores that its outputs hold."""
        return np.exp(np.minimum(outputs, 0)) if self.logarithm else outputs


NORMALISERS = MappingProxyType(
    {
        "softmax": Normaliser("a softmax", "softmax"),
        "log_softmax": Normaliser("a log-softmax", "softmax", logarithm=True),
        "sigmoid": Normaliser("a sigmoid", "sigmoid"),
        "log_sigmoid": Normaliser("a log-sigmoid", "sigmoid", logarithm=True),
    }
)


@dataclass(frozen=True)
class End:
    """The operator that computes a network's outputs.

    Attributes:
        operator: its name, for people.
        plain: whether its values may have any size, as a linear layer's do.
        normaliser: what it is of `NORMALISERS`, if any.
        before: what that took, float32 [N, classes].
        precision: what the network computes in, `fp32` or `fp16`.
    """

    operator: str
    plain: bool
    normaliser: Normaliser | None = None
    before: Array | None = None
    precision: str = "fp32"

    def confirmed(self, outputs: Array) -> Normaliser | None:
        """Return the normaliser where it makes `outputs`, float32 [N, classes], of `before`."""
        if self.normaliser is None or self.before is None:
            return None
        expected = self.normaliser.scored(outputs)
        difference = np.abs(score(self.before, self.normaliser.scores) - expected)
        limit = _AGREEING[self.precision] * expected.max(1, keepdims=True)
        return self.normaliser if (difference <= limit).all() else None


@dataclass(frozen=True)
class Ending:
    """How the outputs of a network become logits, and the logits scores.

    Attributes:
        scores: what makes scores of the logits.
        said: its description for people.
        normaliser: what is taken off the end, if anything: the logits then are
            what it took.
        form: what is made of the values: nothing, log(p) or log(p / (1 - p)).
        sides: whether the one value z becomes the logits -z/2 and z/2.
    """

    scores: Scores
    said: str
    normaliser: Normaliser | None = None
    form: Form = "as is"
    sides: bool = False

    @property
    def altered(self) -> bool:
        """Whether the logits are other numbers than the network's outputs."""
        return self.normaliser is not None or self.form != "as is" or self.sides

    def logits(self, values: Array) -> Array:
        """Make logits, float32 [N, classes], of the outputs, or of what `normaliser` took."""
        logits = values
        if self.form != "as is":
            logits = np.log(np.maximum(values, TINY))
        if self.form == "log-odds":
            logits = logits - np.log(np.maximum(1 - values, TINY))
        return logits * np.array(SIDES, np.float32) if self.sides else logits

    def expected(self, outputs: Array) -> Array:
        """Return the scores, float32 [N, classes], that the network's own outputs stand for."""
        if self.normaliser is None:
            return score(self.logits(outputs), self.scores)
        scores = self.normaliser.scored(outputs)
        return np.concatenate([1 - scores, scores], axis=1) if self.sides else scores


def probes(pictures: Pictures, spec: InputSpec) -> NDArray[np.uint8]:
    """Return the pictures that an ending is found on: some of those given, and noise."""
    return np.concatenate([pictures.images[:_PICTURES], noise(spec).images[:_NOISE]])


def find_ending(outputs: Array, end: End, wanted: Scores | None) -> Ending:
    """Find how the outputs of a network become logits and scores.

    Args:
        outputs: of some pictures, float32 [N, classes].
        end: the operator that computes them.
        wanted: the scores that the user says, or None.

    Raises:
        UsageError: the network's end gives other scores than those wanted.
        ExportError: the kind of the outputs cannot be determined.
    """
    if wanted == "none":
        return Ending("none", "none, as --scores says: the network's outputs as they are")
    normaliser = end.confirmed(outputs)
    if normaliser is not None:
        return _taken_off(normaliser, outputs.shape[1], wanted)
    found = _of_probabilities(outputs)
    if found is not None:
        _refuse_other(found.said, found.scores, wanted)
        return found
    _refuse_negated(outputs)
    looks = "" if end.plain else _looks(outputs) or _bounded(outputs, end)
    if looks:
        return _unexplained(outputs, end, looks, wanted)
    if wanted == "sigmoid":
        return Ending("sigmoid", "sigmoid of the network's outputs, as --scores says")
    return Ending("softmax", "softmax of the network's outputs, which are taken for logits")


def for_labels(
    ending: Ending, outputs: int, labels: Sequence[str], network: str
) -> tuple[Ending, tuple[str, ...]]:
    """Return an ending that has the classes of `labels`, and the label of each class.

    A network with one output z has two classes, with the logits -z/2 and z/2.
    They are called as the two labels, or "not NAME" and NAME where there is one.

    Raises:
        UsageError: the labels are not as many as the outputs.
    """
    labels = tuple(labels)
    alone = outputs == 1 and len(labels) == 1 and ending.scores in ("sigmoid", "none")
    if alone or (outputs > 1 and len(labels) == outputs):
        return ending, labels
    if outputs > 1:
        raise UsageError(f"{len(labels)} labels for the {outputs} classes of {network}")
    if len(labels) > 2 or ending.scores == "none":
        raise UsageError(
            f"{len(labels)} labels for the one output of {network}: it takes one label, or two for "
            "a low and a high output, or one alone with --scores none"
        )
    odds = "the log-odds of " if ending.form == "log-odds" else ""
    said = f"softmax of the logits -z/2 and z/2 of two classes, where z is {odds}the one output"
    if ending.normaliser is not None:
        said += f" before {ending.normaliser.name}, which was taken off its end"
    both = replace(ending, scores="softmax", said=said, sides=True)
    return both, labels if len(labels) == 2 else (f"not {labels[0]}", labels[0])


def _taken_off(normaliser: Normaliser, outputs: int, wanted: Scores | None) -> Ending:
    scores = normaliser.scores
    if outputs > 1:
        _refuse_other(f"the network ends in {normaliser.name}", scores, wanted)
    elif scores == "softmax":
        raise ExportError(
            f"the network ends in {normaliser.name} over one output, which is the same for every "
            "picture; export it without, or with two outputs"
        )
    # Two labels make two classes of one output; see `for_labels`.
    kept = scores if outputs > 1 else (wanted or "softmax")
    what = "" if not normaliser.logarithm else f"; {normaliser.name} was"
    each = "; each label has a score by itself" if scores == "sigmoid" else ""
    said = f"{scores}{what or ','} taken off the end of the network{each}"
    return Ending(kept, said, normaliser)


def _of_probabilities(outputs: Array) -> Ending | None:
    """Return the ending of a network that gives probabilities which no operator explains."""
    if _are_probabilities(outputs):
        said = "softmax of the logarithm of the network's outputs, which are probabilities"
        return Ending("softmax", said, form="logarithm")
    if (outputs <= _ROUNDING).all() and _are_probabilities(np.exp(outputs)):
        return Ending(
            "softmax", "softmax of the network's outputs, which are logarithms of probabilities"
        )
    return None


def _refuse_negated(outputs: Array) -> None:
    if (outputs >= -_ROUNDING).all() and _are_probabilities(np.exp(-outputs)):
        raise ExportError(
            "the network's outputs are negative logarithms of probabilities, whose lowest is the "
            "best class: export the network without the negation at its end"
        )


def _refuse_other(what: str, scores: Scores, wanted: Scores | None) -> None:
    if wanted not in (None, scores):
        raise UsageError(
            f"--scores {wanted} would serve other scores than the network's own ({what}): leave "
            "it out, or serve the outputs as they are with --scores none"
        )


def _unexplained(outputs: Array, end: End, looks: str, wanted: Scores | None) -> Ending:
    """Decide on outputs that look like scores and come from no operator that explains them."""
    shares = looks == _SHARES
    if wanted == "softmax":
        return Ending("softmax", "softmax of the network's outputs, which --scores says are logits")
    if wanted == "sigmoid" and shares:
        said = "sigmoid, as --scores says: the network's outputs are the scores themselves"
        return Ending("sigmoid", said, form="log-odds")
    labels = "sigmoid where each is the score of a label by itself, " if shares else ""
    why = "which does not explain them" if end.normaliser else "no softmax or sigmoid"
    raise ExportError(
        f"the network's outputs {looks} on {len(outputs)} pictures and come from {end.operator}, "
        f"{why}: say what they are with --scores ({labels}softmax where they are logits, none to "
        "serve them as they are)"
    )


def _are_probabilities(outputs: Array) -> bool:
    if outputs.shape[1] == 1:
        return False
    sums = np.abs(outputs.sum(1, dtype=np.float64) - 1)
    return bool((outputs >= -_ROUNDING).all() and (sums <= _SUMMING).all())


def _looks(outputs: Array) -> str:
    """Return how outputs look that may be scores; "" where they do not."""
    if (outputs <= _ROUNDING).all():
        return "are never above 0"
    if not (outputs >= -_ROUNDING).all():
        return ""
    if (outputs <= 1 + _ROUNDING).all():
        return _SHARES
    sums = outputs.sum(1, dtype=np.float64)
    alike = outputs.shape[1] > 1 and bool(np.ptp(sums) <= _SUMMING * sums.max())
    return f"are never below 0 and sum to {sums.mean():.3g}" if alike else ""


def _bounded(outputs: Array, end: End) -> str:
    """Return how outputs look that an operator keeps within bounds which no logits have."""
    operator = end.operator.lower().partition(" ")[0].strip("_")
    if operator in _SQUASHING:
        return "lie between -1 and 1"
    percent = outputs.min() >= -_ROUNDING and outputs.max() <= _PERCENT * (1 + _ROUNDING)
    return "lie between 0 and 100" if percent and operator in _SCALING else ""
