"""A request's path: its limits, its answer, and how it fails."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from foveate_runtime.backends.registry import create_runner
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.heatmap import TURBO
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.classification import CamRequest, FeatureMapRequest, RawImage, Request
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.engine.explain import ExplanationLimits
from foveate_serve.errors import DeadlineError, EngineError, InvalidRequestError, OverloadedError
from foveate_serve.repository.repository import Repository

LIMITS = Limits(
    image=ImageLimits(max_bytes=4096, max_pixels=100),
    explanation=ExplanationLimits(
        max_cam_classes=4, max_picture_side=64, max_feature_bytes=2 * 64 * 4
    ),
    max_requests=2,
    max_request_bytes=300,
)


@pytest_asyncio.fixture
async def engine(tmp_path: Path, write_bundle: Callable[..., Path]) -> AsyncIterator[Engine]:
    write_bundle()
    repository = Repository(tmp_path / "repository", create_runner, BatchPolicy())
    await repository.open()
    engine = Engine(repository, LIMITS, image_threads=2)
    yield engine
    await engine.close()


def half_red_half_blue() -> np.ndarray:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, :6, 0] = 255
    pixels[:, 6:, 2] = 255
    return pixels


def png(pixels: np.ndarray | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(half_red_half_blue() if pixels is None else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def raw(pixels: np.ndarray) -> RawImage:
    return RawImage(height=8, width=8, channels=3, data=pixels.tobytes())


def picture(data: bytes | None) -> np.ndarray:
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(data)))


async def test_classes_come_best_first_with_softmax_scores(engine: Engine) -> None:
    result = await engine.classify(Request(image=png()))
    logits = [0.75 + 0.25, 0.25 - 0.25, 0.0]
    assert [p.class_id for p in result.predictions] == [0, 1, 2]
    assert [p.label for p in result.predictions] == ["red", "green", "blue"]
    np.testing.assert_allclose([p.logit for p in result.predictions], logits, atol=1e-6)
    scores = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([p.score for p in result.predictions], scores, atol=1e-6)
    assert (result.model, result.version) == ("colours", "1")
    assert result.cams == result.feature_maps == ()


async def test_an_encoded_and_a_raw_picture_give_the_same(engine: Engine) -> None:
    encoded = await engine.classify(Request(image=png(), top_k=1))
    plain = await engine.classify(Request(image=raw(half_red_half_blue()), top_k=1))
    assert encoded.predictions == plain.predictions
    assert encoded.view == plain.view
    assert len(plain.predictions) == 1


async def test_the_timing_tells_the_stages(engine: Engine) -> None:
    timing = (await engine.classify(Request(image=png()))).timing
    stages = (timing.decode, timing.queue, timing.infer, timing.encode)
    assert min(stages) > 0
    assert sum(stages) <= timing.total
    assert (timing.batch_size, timing.backend, timing.device, timing.variant) == (
        1,
        "onnxruntime",
        "cpu",
        "fp32",
    )


@pytest.mark.parametrize(
    ("cam", "classes"),
    [
        (CamRequest(), [0]),
        (CamRequest(class_ids=(2, 1)), [2, 1]),
        (CamRequest(top=2), [0, 1]),
        (CamRequest(top=1, class_ids=(2, 2)), [0, 2, 2]),
    ],
)
async def test_maps_are_those_of_the_classes_asked_for(
    engine: Engine, cam: CamRequest, classes: list[int]
) -> None:
    pixels = half_red_half_blue()
    result = await engine.classify(Request(image=png(), cam=cam))
    assert [c.class_id for c in result.cams] == classes
    for found in result.cams:
        np.testing.assert_allclose(found.values, pixels[..., found.class_id] / 255, atol=1e-6)
        assert (found.method, found.layer) == ("cam", "planes")
        assert found.maximum == (0.0 if found.class_id == 1 else 1.0)
        assert found.heatmap is found.overlay is None


async def test_maps_are_drawn_at_the_size_asked_for(engine: Engine) -> None:
    forms = frozenset({"heatmap", "overlay"})
    cam = CamRequest(class_ids=(0, 1), forms=forms, width=24, height=16, opacity=0.25)
    red, green = (await engine.classify(Request(image=png(), cam=cam))).cams
    assert red.values is None
    heatmap, overlay = picture(red.heatmap), picture(red.overlay)
    assert heatmap.shape == overlay.shape == (16, 24, 3)
    assert heatmap[0, 0].tolist() == TURBO[255].tolist()
    assert heatmap[0, -1].tolist() == TURBO[0].tolist()
    expected = 0.75 * np.array([255, 0, 0]) + 0.25 * TURBO[255]
    assert np.abs(overlay[8, 2] - expected).max() <= 1
    # Nothing in the picture is green.
    assert not picture(green.heatmap).any()
    assert np.abs(picture(green.overlay)[8, 2] - np.array([255, 0, 0])).max() <= 1


async def test_pictures_have_the_inputs_size_unless_told(engine: Engine) -> None:
    cam = CamRequest(forms=frozenset({"overlay"}), encoding="jpeg")
    (found,) = (await engine.classify(Request(image=png(), cam=cam))).cams
    assert picture(found.overlay).shape == (8, 8, 3)
    assert Image.open(io.BytesIO(found.overlay or b"")).format == "JPEG"


async def test_feature_maps_hold_the_channels_asked_for(engine: Engine) -> None:
    wanted = (FeatureMapRequest(layer="planes", channels=(2, 0)),)
    (found,) = (await engine.classify(Request(image=png(), feature_maps=wanted))).feature_maps
    assert found.channels == (2, 0)
    expected = half_red_half_blue().transpose(2, 0, 1)[[2, 0]] / 255
    np.testing.assert_allclose(found.values, expected, atol=1e-6)


BAD_REQUESTS = {
    "top_k of 0": (Request(image=b"x", top_k=0), "TOP_K_OUT_OF_RANGE", "top_k", "3"),
    "top_k above": (Request(image=b"x", top_k=4), "TOP_K_OUT_OF_RANGE", "top_k", "3"),
    "method": (
        Request(image=b"x", cam=CamRequest(method="x")),
        "CAM_METHOD_NOT_FOUND",
        "cam.method",
        None,
    ),
    "class": (
        Request(image=b"x", cam=CamRequest(class_ids=(0, 3))),
        "CLASS_ID_OUT_OF_RANGE",
        "cam.class_ids[1]",
        "2",
    ),
    "negative class": (
        Request(image=b"x", cam=CamRequest(class_ids=(-1,))),
        "CLASS_ID_OUT_OF_RANGE",
        "cam.class_ids[0]",
        "2",
    ),
    "cam.top": (
        Request(image=b"x", cam=CamRequest(top=4)),
        "CAM_TOP_OUT_OF_RANGE",
        "cam.top",
        "3",
    ),
    "no class": (
        Request(image=b"x", cam=CamRequest(top=0)),
        "CAM_WITHOUT_CLASS",
        "cam.top",
        None,
    ),
    "too many classes": (
        Request(image=b"x", cam=CamRequest(top=3, class_ids=(0, 0))),
        "TOO_MANY_CAM_CLASSES",
        "cam.class_ids",
        "4",
    ),
    "width": (
        Request(image=b"x", cam=CamRequest(width=65)),
        "PICTURE_SIDE_OUT_OF_RANGE",
        "cam.width",
        "64",
    ),
    "height": (
        Request(image=b"x", cam=CamRequest(height=-1)),
        "PICTURE_SIDE_OUT_OF_RANGE",
        "cam.height",
        "64",
    ),
    "opacity": (
        Request(image=b"x", cam=CamRequest(opacity=float("nan"))),
        "OPACITY_OUT_OF_RANGE",
        "cam.opacity",
        "1",
    ),
    "layer": (
        Request(image=b"x", feature_maps=(FeatureMapRequest(layer="x"),)),
        "LAYER_NOT_FOUND",
        "feature_maps[0].layer",
        None,
    ),
    "layer twice": (
        Request(
            image=b"x",
            feature_maps=(FeatureMapRequest(layer="planes", channels=(0,)),) * 2,
        ),
        "LAYER_REPEATED",
        "feature_maps[1].layer",
        None,
    ),
    "channel": (
        Request(image=b"x", feature_maps=(FeatureMapRequest(layer="planes", channels=(0, 3)),)),
        "CHANNEL_OUT_OF_RANGE",
        "feature_maps[0].channels[1]",
        "2",
    ),
    "feature bytes": (
        Request(image=b"x", feature_maps=(FeatureMapRequest(layer="planes"),)),
        "FEATURE_MAPS_TOO_LARGE",
        "feature_maps[0]",
        "512",
    ),
    "raw height": (
        Request(image=RawImage(height=7, width=8, channels=3, data=b"")),
        "SHAPE_MISMATCH",
        "raw.height",
        "8",
    ),
    "raw channels": (
        Request(image=RawImage(height=8, width=8, channels=1, data=b"")),
        "SHAPE_MISMATCH",
        "raw.channels",
        "3",
    ),
    "raw bytes": (
        Request(image=RawImage(height=8, width=8, channels=3, data=b"0" * 191)),
        "SHAPE_MISMATCH",
        "raw.data",
        "192",
    ),
    "no bytes": (Request(image=b""), "IMAGE_EMPTY", "encoded", None),
    "no picture": (Request(image=b"x"), "IMAGE_UNSUPPORTED", "encoded", None),
    "bytes": (Request(image=b"x" * 4097), "IMAGE_TOO_LARGE", "encoded", "4096"),
    "pixels": (
        Request(image=png(np.zeros((11, 10, 3), dtype=np.uint8))),
        "IMAGE_TOO_LARGE",
        "encoded",
        "100",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_bad_requests_name_the_field_and_the_limit(engine: Engine, name: str) -> None:
    request, reason, field, limit = BAD_REQUESTS[name]
    with pytest.raises(InvalidRequestError) as raised:
        await engine.classify(request)
    assert (raised.value.reason, raised.value.field) == (reason, field)
    assert raised.value.metadata.get("limit") == limit
    if limit is not None:
        assert limit in raised.value.message
    assert (await engine.classify(Request(image=png()))).predictions[0].label == "red"


async def test_requests_in_flight_are_limited(engine: Engine) -> None:
    request = Request(image=png())
    results = await asyncio.gather(
        *(engine.classify(request) for _ in range(3)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, OverloadedError)]
    assert [(error.reason, error.metadata["limit"]) for error in refused] == [
        ("TOO_MANY_REQUESTS", "2")
    ]
    assert refused[0].retry_delay.total_seconds() > 0
    # What was answered or refused holds no place.
    await asyncio.gather(engine.classify(request), engine.classify(request))


async def test_bytes_in_flight_are_limited_but_not_for_a_lone_request(engine: Engine) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    request = Request(image=png(noise) + b"\0" * 300)
    results = await asyncio.gather(
        engine.classify(request), engine.classify(request), return_exceptions=True
    )
    assert [getattr(result, "reason", None) for result in results] == [None, "TOO_MANY_BYTES"]


async def test_a_passed_deadline_is_an_error(engine: Engine) -> None:
    with pytest.raises(DeadlineError):
        await engine.classify(Request(image=png()), deadline=time.monotonic() - 1)
    assert (await engine.classify(Request(image=png()), deadline=time.monotonic() + 60)).model


async def test_a_deadline_ends_the_wait_for_a_busy_engine(
    gated, tmp_path: Path, write_bundle: Callable[..., Path]
) -> None:
    write_bundle()
    repository = Repository(tmp_path / "repository", lambda bundle: gated, BatchPolicy())
    await repository.open()
    engine = Engine(repository, LIMITS, image_threads=1)
    gated.gate.clear()
    busy = asyncio.ensure_future(engine.classify(Request(image=png())))
    with pytest.raises(DeadlineError):
        await engine.classify(Request(image=png()), deadline=time.monotonic() + 0.05)
    gated.gate.set()
    assert (await busy).predictions
    bad = Request(image=raw(np.full((8, 8, 3), 13, dtype=np.uint8)))
    with pytest.raises(EngineError):
        await engine.classify(bad)
    await engine.close()
    assert gated.closed
