"""A server tells how far its answers lie from those to the calibration pictures."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from foveate_runtime.backends.registry import create_runner
from foveate_runtime.trust import drift
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.classification import RawImage, Request
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.engine.graph import GraphRequest
from foveate_serve.observe.metrics import METRICS, Metrics
from foveate_serve.repository.repository import Repository
from foveate_serve.statistics import Statistics

from ...clients.test_trust import calibrated_repository

ALERTS = Path(__file__).parents[3] / "deploy" / "prometheus" / "alerts.yml"
FIGURES = {"confidence", "entropy", "ood_percentile", "set_size"}


def raw(pixels: np.ndarray) -> RawImage:
    height, width, channels = pixels.shape
    return RawImage(height=height, width=width, channels=channels, data=pixels.tobytes())


def indices_of(metrics: Metrics, repository: Repository, model: str) -> dict[str, float]:
    metrics.sample(repository)
    (found,) = (family for family in metrics.registry.collect() if family.name.endswith("_psi"))
    return {
        sample.labels["figure"]: sample.value
        for sample in found.samples
        if sample.labels["model"] == model
    }


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated_repository(tmp_path_factory.mktemp("drift"))


async def test_pictures_that_are_other_than_before_raise_the_index(
    calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "SAMPLES_A_SECOND", float("inf"))
    repository = Repository(calibrated, create_runner, BatchPolicy())
    await repository.open()
    statistics = Statistics()
    metrics, engine = Metrics(statistics), Engine(repository, Limits(), image_threads=1)
    spec = repository.get("colours", "").bundle.manifest.input
    size = (spec.height, spec.width, spec.channels)
    assert indices_of(metrics, repository, "colours") == {}
    random = np.random.default_rng(5)
    for _ in range(drift.WINDOW):
        colour = random.integers(0, 120, 3)
        colour[random.integers(3)] += 60
        image = np.broadcast_to(colour.astype(np.uint8), size)
        await engine.classify(Request(image=raw(image), model="colours"))
    same = indices_of(metrics, repository, "colours")
    assert same.keys() == FIGURES
    assert max(same.values()) < 0.2
    black = np.zeros((1, *size), np.uint8)
    for _ in range(drift.WINDOW):
        await engine.infer(GraphRequest(images=black, model="colours"))
    assert max(indices_of(metrics, repository, "colours").values()) > 1
    # The version before it was not calibrated, and has nothing to be compared with.
    await engine.classify(Request(image=raw(black[0]), model="plain"))
    assert indices_of(metrics, repository, "plain") == {}
    await engine.close()


def test_the_alerts_are_of_metrics_that_there_are() -> None:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    expressions = [rule["expr"] for group in groups for rule in group["rules"]]
    named = set(re.findall(r"foveate_\w+", " ".join(expressions)))
    assert "foveate_drift_psi" in named
    known = {metric.name for metric in METRICS}
    assert {name.removesuffix("_total") for name in named} <= known
