"""Photographs go in, predictions and what they rest on come out."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from foveate.v1.classifier_service_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
    ClassifyStreamRequest,
    GetModelRequest,
    ListModelsRequest,
    RawImage,
)
from foveate.v1.explanation_pb2 import (
    HEATMAP_FORM_HEATMAP,
    HEATMAP_FORM_OVERLAY,
    HEATMAP_FORM_RAW,
    PICTURE_ENCODING_JPEG,
    CamOptions,
    FeatureMapOptions,
)
from foveate.v1.model_pb2 import MODEL_STATE_READY
from foveate_runtime.imaging.heatmap import TURBO

from ..encoding import encoded

MODEL = "efficientnet_lite0"


@dataclass(frozen=True)
class Answered:
    photographs: list
    responses: list[ClassifyResponse]


@pytest.fixture(scope="module")
def answered(server, photographs) -> Answered:
    """Classify every photograph, with the maps of its five best classes."""
    requests = (
        ClassifyStreamRequest(
            request_id=photograph.name,
            request=ClassifyRequest(
                model=MODEL, encoded=photograph.encoded, cam=CamOptions(top=5, class_ids=[0])
            ),
        )
        for photograph in photographs
    )
    items = list(server.classifier.ClassifyStream(requests, timeout=120))
    assert [item.request_id for item in items] == [photo.name for photo in photographs]
    return Answered(photographs, [item.response for item in items])


def raw_map(cam) -> np.ndarray:
    return np.frombuffer(cam.values, dtype="<f4").reshape(cam.height, cam.width)


def picture(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded))


def test_photographs_get_their_right_class(answered: Answered) -> None:
    right = [
        response.predictions[0].class_id in photograph.classes
        for photograph, response in zip(answered.photographs, answered.responses, strict=True)
    ]
    assert np.mean(right) >= 0.85


def test_every_map_accounts_for_its_logit(answered: Answered, bias: np.ndarray) -> None:
    # Zhou et al. 2016, equation 2: with a pooled linear head, mean(CAM_c) + b_c is the logit.
    for response in answered.responses:
        assert [cam.class_id for cam in response.cams] == [
            *(prediction.class_id for prediction in response.predictions),
            0,
        ]
        for prediction, cam in zip(response.predictions, response.cams, strict=False):
            logit = raw_map(cam).mean() + bias[cam.class_id]
            assert abs(logit - prediction.logit) < 1e-3


def test_maps_tell_their_range_and_their_class(answered: Answered, labels) -> None:
    for response in answered.responses:
        for cam in response.cams:
            values = raw_map(cam)
            assert (cam.minimum, cam.maximum) == (values.min(), values.max())
            assert (cam.method, cam.height, cam.width) == ("cam", 7, 7)
            assert cam.label == labels[cam.class_id]


def test_scores_are_probabilities_best_first(server, photographs) -> None:
    response = server.classifier.Classify(
        ClassifyRequest(model=MODEL, encoded=photographs[0].encoded, top_k=1000), timeout=60
    )
    scores = [prediction.score for prediction in response.predictions]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-4)
    assert {prediction.class_id for prediction in response.predictions} == set(range(1000))
    assert not response.HasField("timing")


def test_an_overlay_is_the_picture_the_classifier_saw_under_the_map(server, photographs) -> None:
    photograph = picture(photographs[0].encoded).convert("RGB")
    response = server.classifier.Classify(
        ClassifyRequest(
            model=MODEL,
            encoded=photographs[0].encoded,
            cam=CamOptions(
                forms=[HEATMAP_FORM_RAW, HEATMAP_FORM_HEATMAP, HEATMAP_FORM_OVERLAY], opacity=0.25
            ),
        ),
        timeout=60,
    )
    view, (cam,) = response.view, response.cams
    assert (view.source_width, view.source_height) == photograph.size
    box = (view.left, view.top, view.left + view.width, view.top + view.height)
    seen = photograph.resize((224, 224), Image.Resampling.BICUBIC, box=box)
    heatmap, overlay = picture(cam.heatmap), picture(cam.overlay)
    assert heatmap.size == overlay.size == (224, 224)
    evidence = np.maximum(raw_map(cam), 0) / cam.maximum
    share = 0.25 * np.asarray(Image.fromarray(evidence).resize((224, 224), Image.BILINEAR))
    expected = np.asarray(seen, float)
    expected += share[..., None] * (np.asarray(heatmap, float) - expected)
    assert np.abs(np.asarray(overlay, float) - expected).mean() < 2
    # Read back through the colours, the heatmap follows the map's positive part.
    colours = np.asarray(heatmap, int)[16::32, 16::32, None]
    drawn = np.abs(colours - TURBO.astype(int)).sum(-1).argmin(-1) / 255
    values = raw_map(cam)
    np.testing.assert_allclose(drawn, np.maximum(values, 0) / values.max(), atol=0.05)


def test_pictures_come_in_the_size_and_the_encoding_asked_for(server, photographs) -> None:
    options = CamOptions(
        forms=[HEATMAP_FORM_OVERLAY], width=300, height=200, encoding=PICTURE_ENCODING_JPEG
    )
    request = ClassifyRequest(model=MODEL, encoded=photographs[0].encoded, cam=options)
    (cam,) = server.classifier.Classify(request, timeout=60).cams
    assert picture(cam.overlay).size == (300, 200)
    assert picture(cam.overlay).format == "JPEG"
    assert not cam.values
    assert not cam.heatmap


def test_feature_maps_are_those_of_the_layers_and_channels_asked_for(server, photographs) -> None:
    model = server.classifier.GetModel(GetModelRequest(name=MODEL), timeout=60).model
    first, last = model.layers[0], model.layers[-1]
    request = ClassifyRequest(
        model=MODEL,
        encoded=photographs[0].encoded,
        feature_maps=[
            FeatureMapOptions(layer=last.name),
            FeatureMapOptions(layer=first.name, channels=[3, 1]),
        ],
    )
    whole, some = server.classifier.Classify(request, timeout=60).feature_maps
    assert (whole.layer, some.layer) == (last.name, first.name)
    assert list(whole.channels) == list(range(last.channels))
    assert list(some.channels) == [3, 1]
    values = np.frombuffer(some.values, dtype="<f4").reshape(2, first.height, first.width)
    assert (some.minimum, some.maximum) == (values.min(), values.max())

    del request.feature_maps[:]
    request.feature_maps.add(layer=first.name)
    (full,) = server.classifier.Classify(request, timeout=60).feature_maps
    channels = np.frombuffer(full.values, dtype="<f4").reshape(-1, first.height, first.width)
    np.testing.assert_array_equal(values, channels[[3, 1]])


def test_raw_bytes_and_the_same_file_give_the_same(server, cat: np.ndarray) -> None:
    crop = np.ascontiguousarray(cat[:28, :28, :1])
    raw = RawImage(height=28, width=28, channels=1, data=crop.tobytes())
    file = ClassifyRequest(model="lenet5", encoded=encoded(crop[..., 0]))
    plain = ClassifyRequest(model="lenet5", raw=raw, timing=True)
    from_file = server.classifier.Classify(file, timeout=60)
    from_bytes = server.classifier.Classify(plain, timeout=60)
    assert from_file.predictions == from_bytes.predictions
    assert len(from_file.predictions) == 5
    assert from_bytes.timing.backend == "onnxruntime"
    assert from_bytes.timing.batch_size == 1
    assert from_bytes.timing.total.ToTimedelta() >= from_bytes.timing.infer.ToTimedelta()


def test_an_error_belongs_to_its_picture_and_not_to_the_stream(server, photographs) -> None:
    good = ClassifyRequest(model=MODEL, encoded=photographs[0].encoded)
    bad = ClassifyRequest(model=MODEL, encoded=photographs[0].encoded, top_k=0)
    requests = [
        ClassifyStreamRequest(request_id=str(number), request=bad if number % 3 == 1 else good)
        for number in range(12)
    ]
    items = list(server.classifier.ClassifyStream(iter(requests), timeout=60))
    assert [item.request_id for item in items] == [str(number) for number in range(12)]
    for number, item in enumerate(items):
        if number % 3 == 1:
            assert item.error.reason == "TOP_K_OUT_OF_RANGE"
            assert item.error.field_violations[0].field == "top_k"
            assert item.error.metadata["limit"] == "1000"
        else:
            assert item.response.predictions[0].class_id in photographs[0].classes


def test_models_are_listed_and_described(server, labels) -> None:
    first = server.classifier.ListModels(ListModelsRequest(page_size=1), timeout=60)
    assert [model.name for model in first.models] == ["efficientnet_lite0"]
    rest = server.classifier.ListModels(
        ListModelsRequest(page_size=1, page_token=first.next_page_token), timeout=60
    )
    assert [model.name for model in rest.models] == ["lenet5"]
    assert not rest.next_page_token
    assert first.models[0].versions[0].state == MODEL_STATE_READY

    model = server.classifier.GetModel(GetModelRequest(name=MODEL), timeout=60).model
    assert tuple(model.labels) == labels
    assert (model.input.height, model.input.width, model.input.channels) == (224, 224, 3)
    assert (model.input.resize, model.input.interpolation) == (256, "bicubic")
    assert model.classifier == "package:efficientnet_lite0"
    assert model.variants[0].parity.logits_max_abs < 1e-3
    assert model.variants[0].size > 1_000_000
    assert model.cam_methods[0].name == "cam"
