"""Scores of how unlike the calibration pictures a picture is; larger is more unlike.

- `gen`: the generalised entropy of Liu, Lochman and Zach, "GEN: Pushing the Limits of
  Softmax-Based Out-of-Distribution Detection" (CVPR 2023): sum_j p[j]^g (1 - p[j])^g over
  the M largest probabilities, g = 0.1 and M = 100. For independent labels, over all of
  them and the largest M.
- `energy`: -log sum_c exp(z[c]) of Liu et al., "Energy-based Out-of-distribution
  Detection" (NeurIPS 2020); for independent labels -sum_c log(1 + exp(z[c])), as in
  Wang et al., "Can multi-label classification networks know what they don't know?"
  (NeurIPS 2021).
- `max_logit`: -max_c z[c] of Hendrycks et al., "Scaling Out-of-Distribution Detection for
  Real-World Settings" (ICML 2022).
- `combined`: the larger of the percentile of `gen` and of 2 |q - 50|, q being the percentile
  of `energy`. The others miss what a network is sure of, more than of any picture of its
  kind, as one of digits is of noise; this one takes both ends of the energy for unusual.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.bundle.trust import Outlier
from foveate_runtime.trust import shares
from foveate_runtime.trust.shares import Doubles, Logits

_GAMMA = 0.1
_LARGEST = 100
_PERCENTILES = np.arange(101)


def gen(logits: Logits, scores: Scores) -> Doubles:
    """Return the generalised entropy of each picture, float64 [N], of logits [N, classes]."""
    product = shares.probabilities(logits, scores) * shares.lack(logits, scores)
    if product.shape[1] > _LARGEST:
        # The largest probabilities, not the largest products.
        kept = np.argpartition(-logits, _LARGEST - 1, axis=1)[:, :_LARGEST]
        product = np.take_along_axis(product, kept, axis=1)
    entropy: Doubles = np.power(product, _GAMMA).sum(axis=1)
    return entropy


def energy(logits: Logits, scores: Scores) -> Doubles:
    """Return the energy of each picture, float64 [N], of logits [N, classes]."""
    wide = logits.astype(np.float64)
    found: Doubles
    if scores == "sigmoid":
        found = -np.logaddexp(0.0, wide).sum(axis=1)
    else:
        # As np.logaddexp.reduce, in a quarter of its time.
        highest = wide.max(axis=1)
        found = -(highest + np.log(np.exp(wide - highest[:, None]).sum(axis=1)))
    return found


def max_logit(logits: Logits, scores: Scores) -> Doubles:  # noqa: ARG001 - one signature for all
    """Return minus the largest logit of each picture, float64 [N], of logits [N, classes]."""
    found: Doubles = -logits.astype(np.float64).max(axis=1)
    return found


OUTLIERS: MappingProxyType[Outlier, Callable[[Logits, Scores], Doubles]] = MappingProxyType(
    {"gen": gen, "energy": energy, "max_logit": max_logit}
)
"""The scores that logits alone give, by name."""

Tables = Mapping[Outlier, Sequence[float] | Doubles]

DEFAULT: Outlier = "combined"
"""The one whose least area under the ROC curve is the largest: see benchmarks/trust.py."""


def table(values: Doubles) -> tuple[float, ...]:
    """Return the 0th to the 100th percentile of `values` [N]."""
    return tuple(float(value) for value in np.percentile(values, _PERCENTILES))


def tables(logits: Logits, scores: Scores) -> dict[Outlier, tuple[float, ...]]:
    """Return the percentiles of every score over logits [N, classes]."""
    found: dict[Outlier, tuple[float, ...]] = {
        name: table(score(logits, scores)) for name, score in OUTLIERS.items()
    }
    return {"combined": table(_combined(logits, scores, found)), **found}


def unusual(logits: Logits, scores: Scores, by: Outlier, known: Tables) -> Doubles:
    """Return which percentile of a score's table, of `tables`, logits [N, classes] have."""
    values = _combined(logits, scores, known) if by == "combined" else OUTLIERS[by](logits, scores)
    return percentile(values, np.asarray(known[by]))


def _combined(logits: Logits, scores: Scores, known: Tables) -> Doubles:
    spread = unusual(logits, scores, "gen", known)
    sides = 2 * np.abs(unusual(logits, scores, "energy", known) - 50)
    larger: Doubles = np.maximum(spread, sides)
    return larger


def percentile(values: Doubles, places: Doubles) -> Doubles:
    """Return which percentile of a table each of `values` [N] is, from 0 to 100.

    100 is the most unlike. A value that several percentiles share is the highest of them.
    """
    found: Doubles = np.interp(values, places, _PERCENTILES)
    return found
