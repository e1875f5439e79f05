"""Prints what MAPIE, netcal and pytorch-ood say of the arrays in a file, as JSON.

Run by test_oracles in an environment of its own.
"""

import json
import sys

import numpy as np
import torch
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores.sets.raps import RAPSConformityScore
from netcal.metrics import ECE
from netcal.scaling import TemperatureScaling
from pytorch_ood.detector import GEN, EnergyBased, MaxLogit
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
            "max_logit": MaxLogit.score(tensor).tolist(),
        }
    )
)
