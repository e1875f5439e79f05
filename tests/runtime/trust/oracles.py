"""Prints what MAPIE, netcal, pytorch-ood and Quantus say of the arrays in a file, as JSON.

Run by test_oracles in an environment of its own.
"""

import json
import sys
from itertools import pairwise

import numpy as np
import torch
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores.sets.raps import RAPSConformityScore
from netcal.metrics import ECE
from netcal.scaling import TemperatureScaling
from pytorch_ood.detector import GEN, EnergyBased, MaxLogit
from quantus import Focus
from quantus.functions.similarity_func import correlation_spearman
from quantus.helpers.utils import calculate_auc
from sklearn.base import BaseEstimator, ClassifierMixin


class Known(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose probabilities are its input."""

    def __init__(self, classes: int = 2) -> None:
        self.classes = classes
        self.classes_ = np.arange(classes)

    def fit(self, *_: object) -> "Known":
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return x

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x.argmax(1)


arrays = np.load(sys.argv[1])
logits, targets = arrays["logits"], arrays["targets"]
probabilities, coverage = arrays["probabilities"], float(arrays["coverage"])
weight, free = float(arrays["weight"]), int(arrays["free"])

conformal = SplitConformalClassifier(
    Known(logits.shape[1]), confidence_level=coverage, conformity_score="lac", prefit=True
)
conformal.conformalize(probabilities, targets)
_, members = conformal.predict_set(probabilities)

raps = RAPSConformityScore()
raps.lambda_star, raps.k_star = weight, free
order = np.argsort(-probabilities, axis=1, kind="stable")
ordered = np.take_along_axis(probabilities, order, axis=1)
regularised = raps._add_regularization(ordered.cumsum(axis=1), prediction_phase=True)
scores = np.empty_like(regularised)
np.put_along_axis(scores, order, regularised - ordered, axis=1)

scaling = TemperatureScaling()
scaling.fit(probabilities, targets)
scaled = scaling.transform(probabilities)

maps = arrays["maps"]
quarters = np.eye(4)[np.arange(len(maps)) % 4]
focus = Focus(disable_warnings=True, display_progressbar=False)
# Quantus knows it by the name that it had before NumPy 2.
setattr(np, "trapz", np.trapezoid)  # noqa: B010 - mypy knows no such name

tensor = torch.from_numpy(logits)
print(
    json.dumps(
        {
            "lac": float(conformal._mapie_classifier.quantiles_[0]),
            "members": members[:, :, 0].tolist(),
            "raps": scores.tolist(),
            "scaled": scaled.tolist(),
            "ece": float(ECE(15).measure(probabilities, targets)),
            "gen": GEN.score(tensor, gamma=0.1, M=100).tolist(),
            "energy": EnergyBased.score(tensor, t=1.0).tolist(),
            "focus": focus.evaluate_batch(a_batch=maps[:, None], c_batch=quarters).tolist(),
            "spearman": [
                float(correlation_spearman(one.ravel(), two.ravel())) for one, two in pairwise(maps)
            ],
            "auc": [
                float(calculate_auc(curve, dx=1 / (len(curve) - 1))) for curve in probabilities
            ],
            "max_logit": MaxLogit.score(tensor).tolist(),
        }
    )
)
