"""Scores by the kind that the bundle names, from the engine to the messages of every service."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveate.status import StatusError
from foveate.v1.classifier_service_pb2 import ClassifyRequest, GetModelRequest, RawImage
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.scores import score
from foveate_serve.classification import Request
from foveate_serve.engine.explain import ExplanationLimits
from foveate_serve.engine.plan import make_plan
from foveate_serve.local import LocalTransport

BIAS = np.array([0.25, 0.0, -0.25])
COLOUR = np.array([255, 102, 0], np.uint8)
LOGITS = (COLOUR / 255 + BIAS).astype(np.float32)[None]
PICTURE = RawImage(height=8, width=8, channels=3, data=COLOUR.tobytes() * 64)
KINDS = ["softmax", "sigmoid", "none"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def local(tmp_path: Path, write_bundle: Callable[..., Path], kind: str):
    write_bundle(scores=kind)
    with LocalTransport(tmp_path / "repository") as transport:
        yield transport


def classify(local: LocalTransport, **options):
    return local.classify(ClassifyRequest(raw=PICTURE, **options), 30)


def test_an_answer_says_what_its_scores_are(local: LocalTransport, kind: str) -> None:
    answer = classify(local)
    assert answer.scores == kind
    assert [p.label for p in answer.predictions] == ["red", "green", "blue"]
    got = [prediction.score for prediction in answer.predictions]
    assert got == pytest.approx(score(LOGITS, kind)[0].tolist(), abs=1e-6)
    logits = [prediction.logit for prediction in answer.predictions]
    assert logits == pytest.approx(LOGITS[0].tolist(), abs=1e-6)


def test_a_model_says_what_its_scores_are_and_what_was_assumed(
    local: LocalTransport, kind: str
) -> None:
    model = local.get_model(GetModelRequest(), 30).model
    assert model.scores == kind
    assert dict(model.assumptions) == {"scores": f"{kind}, in a test"}


def test_only_scores_from_the_threshold_on_come(local: LocalTransport, kind: str) -> None:
    scores = sorted(score(LOGITS, kind)[0].tolist(), reverse=True)
    middle = (scores[1] + scores[2]) / 2
    assert len(classify(local, threshold=middle).predictions) == 2
    assert len(classify(local, threshold=middle, top_k=1).predictions) == 1
    exact = classify(local).predictions[1].score
    assert len(classify(local, threshold=exact).predictions) == 2
    assert not classify(local, threshold=1.0 if kind != "none" else 99.0).predictions
    assert len(classify(local, threshold=0.0).predictions) == (2 if kind == "none" else 3)


@pytest.mark.parametrize("threshold", [-0.5, 1.5, float("nan"), float("inf")])
def test_a_threshold_that_no_score_can_have_is_refused(
    local: LocalTransport, kind: str, threshold: float
) -> None:
    if kind == "none" and abs(threshold) < 2:
        assert classify(local, threshold=threshold).scores == "none"
        return
    with pytest.raises(StatusError) as caught:
        classify(local, threshold=threshold)
    status = caught.value.status
    assert status.reason == "THRESHOLD_OUT_OF_RANGE"
    assert [violation.field for violation in status.field_violations] == ["threshold"]
    assert f"({kind})" in status.message


@pytest.mark.parametrize("classes", [3, 12])
def test_a_threshold_lifts_the_usual_bound_of_five(
    classes: int, write_bundle: Callable[..., Path]
) -> None:
    manifest = Bundle.open(write_bundle()).manifest.model_copy(update={"classes": classes})
    image = PICTURE.data

    def bound(**options) -> int:
        return make_plan(Request(image=image, **options), manifest, ExplanationLimits()).top_k

    assert bound() == min(5, classes)
    assert bound(threshold=0.5) == classes
    assert bound(threshold=0.5, top_k=2) == 2
