"""Whatever comes in, the answer is clear and the server goes on."""

from collections.abc import Callable

import grpc
import numpy as np
import pytest
from PIL import ExifTags, Image

from foveate.status import ErrorStatus
from foveate.v1.classifier_service_pb2 import ClassifyRequest, GetModelRequest, RawImage
from foveate.v1.explanation_pb2 import CamOptions, FeatureMapOptions

from ..encoding import encoded

MODEL = "efficientnet_lite0"
CATS = {281, 282, 285}


def request(picture: bytes, **fields: object) -> ClassifyRequest:
    return ClassifyRequest(model=MODEL, encoded=picture, **fields)


@pytest.fixture(scope="module")
def cat_image(cat: np.ndarray) -> Image.Image:
    return Image.fromarray(cat)


@pytest.fixture(scope="module")
def fails(
    server, cat_image: Image.Image, error_of: Callable[[grpc.RpcError], ErrorStatus]
) -> Callable[[ClassifyRequest], tuple[grpc.StatusCode, ErrorStatus]]:
    """Return a function that sends a bad request, then shows that a good one is answered."""

    def send(bad: ClassifyRequest) -> tuple[grpc.StatusCode, ErrorStatus]:
        with pytest.raises(grpc.RpcError) as raised:
            server.classifier.Classify(bad, timeout=60)
        good = server.classifier.Classify(request(encoded(cat_image, "JPEG")), timeout=60)
        assert good.predictions[0].class_id in CATS
        status = error_of(raised.value)
        assert status.message == raised.value.details()
        assert len(status.message) < 2000
        return raised.value.code(), status

    return send


def jpeg_of_noise() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), "JPEG")


JPEG = jpeg_of_noise()


def claiming(avif: bytes, side: int) -> bytes:
    at = avif.index(b"ispe") + 8
    return avif[:at] + 2 * side.to_bytes(4, "big") + avif[at + 8 :]


INVALID = {
    "empty bytes": (request(b""), "IMAGE_EMPTY", "encoded", None),
    "a text file": (request(b"Dear server,\n"), "IMAGE_UNSUPPORTED", "encoded", None),
    "a truncated JPEG": (request(JPEG[: len(JPEG) // 2]), "IMAGE_CORRUPT", "encoded", None),
    "too many pixels": (
        request(encoded(Image.new("1", (8000, 7000)))),
        "IMAGE_TOO_LARGE",
        "encoded",
        "50000000",
    ),
    "an AVIF that claims too many pixels": (
        request(claiming(encoded(Image.new("RGB", (64, 64)), "AVIF"), 60_000)),
        "IMAGE_TOO_LARGE",
        "encoded",
        "16777216",
    ),
    "a HEIC": (
        request(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)),
        "IMAGE_UNSUPPORTED",
        "encoded",
        None,
    ),
    "too many bytes": (request(bytes((16 << 20) + 1)), "IMAGE_TOO_LARGE", "encoded", "16777216"),
    "no picture": (ClassifyRequest(model=MODEL), "IMAGE_MISSING", "image", None),
    "raw bytes of another size": (
        ClassifyRequest(
            model=MODEL, raw=RawImage(height=224, width=223, channels=3, data=bytes(224 * 223 * 3))
        ),
        "SHAPE_MISMATCH",
        "raw.width",
        "224",
    ),
    "too few raw bytes": (
        ClassifyRequest(model=MODEL, raw=RawImage(height=224, width=224, channels=3, data=b"abc")),
        "SHAPE_MISMATCH",
        "raw.data",
        "150528",
    ),
    "no model": (ClassifyRequest(encoded=JPEG), "MODEL_REQUIRED", "model", None),
    "top_k of 0": (request(JPEG, top_k=0), "TOP_K_OUT_OF_RANGE", "top_k", "1000"),
    "top_k above the classes": (request(JPEG, top_k=1001), "TOP_K_OUT_OF_RANGE", "top_k", "1000"),
    "an unknown CAM method": (
        request(JPEG, cam=CamOptions(method="grad")),
        "CAM_METHOD_NOT_FOUND",
        "cam.method",
        None,
    ),
    "a CAM method of another model": (
        ClassifyRequest(model="lenet5", encoded=JPEG, cam=CamOptions(method="cam")),
        "CAM_METHOD_NOT_FOUND",
        "cam.method",
        None,
    ),
    "a class id out of range": (
        request(JPEG, cam=CamOptions(class_ids=[0, 999, 1000])),
        "CLASS_ID_OUT_OF_RANGE",
        "cam.class_ids[2]",
        "999",
    ),
    "a negative class id": (
        request(JPEG, cam=CamOptions(class_ids=[-1])),
        "CLASS_ID_OUT_OF_RANGE",
        "cam.class_ids[0]",
        "999",
    ),
    "too many classes": (
        request(JPEG, cam=CamOptions(top=17)),
        "TOO_MANY_CAM_CLASSES",
        "cam.top",
        "16",
    ),
    "a heatmap too large": (
        request(JPEG, cam=CamOptions(forms=[2], width=1025)),
        "PICTURE_SIDE_OUT_OF_RANGE",
        "cam.width",
        "1024",
    ),
    "an unknown form": (
        request(JPEG, cam=CamOptions(forms=[4])),
        "VALUE_UNKNOWN",
        "cam.forms[0]",
        "3",
    ),
    "an unknown layer": (
        request(JPEG, feature_maps=[FeatureMapOptions(layer="\N{GRINNING FACE}" * 5000)]),
        "LAYER_NOT_FOUND",
        "feature_maps[0].layer",
        None,
    ),
    "an unknown channel": (
        request(JPEG, feature_maps=[FeatureMapOptions(layer="blocks.0", channels=[16])]),
        "CHANNEL_OUT_OF_RANGE",
        "feature_maps[0].channels[0]",
        "15",
    ),
    "feature maps too large": (
        request(JPEG, feature_maps=[FeatureMapOptions(layer="blocks.0", channels=[0] * 400)]),
        "FEATURE_MAPS_TOO_LARGE",
        "feature_maps[0]",
        "16777216",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_bad_argument_names_its_field_and_its_limit(name: str, fails) -> None:
    bad, reason, field, limit = INVALID[name]
    code, status = fails(bad)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert status.code == code.value[0]
    assert status.reason == reason
    (violation,) = status.field_violations
    assert (violation.field, violation.description) == (field, status.message)
    assert status.metadata.get("limit") == limit
    if limit is not None:
        assert limit in status.message


@pytest.mark.parametrize(
    ("model", "version", "reason"),
    [
        ("no_such_model", "", "MODEL_NOT_FOUND"),
        ("../efficientnet_lite0", "", "MODEL_NOT_FOUND"),
        ("x" * 10_000, "", "MODEL_NOT_FOUND"),
        (MODEL, "99", "VERSION_NOT_FOUND"),
        (MODEL, "canary", "VERSION_NOT_FOUND"),
    ],
)
def test_an_unknown_model_or_version_is_not_found(
    model: str, version: str, reason: str, fails
) -> None:
    code, status = fails(ClassifyRequest(model=model, version=version, encoded=JPEG))
    assert code is grpc.StatusCode.NOT_FOUND
    assert status.reason == reason


def test_a_name_of_a_megabyte_is_refused_unread(fails) -> None:
    code, status = fails(ClassifyRequest(model="x" * 1_000_000))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert status.reason == "FIELDS_TOO_LARGE"


def test_the_details_of_an_unknown_model_are_not_found(server, error_of) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        server.classifier.GetModel(GetModelRequest(name="no_such_model"), timeout=60)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert error_of(raised.value).reason == "MODEL_NOT_FOUND"


def test_a_message_over_the_size_limit_is_refused_by_grpc(server, cat_image: Image.Image) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        server.classifier.Classify(request(bytes((24 << 20) + 1)), timeout=60)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(24 << 20) in raised.value.details()
    good = server.classifier.Classify(request(encoded(cat_image, "JPEG")), timeout=60)
    assert good.predictions[0].class_id in CATS


def test_a_file_of_almost_the_largest_size_is_answered(server, cat_image: Image.Image) -> None:
    file = encoded(cat_image.resize((2364, 2364)), "BMP")
    assert 0.999 < len(file) / (16 << 20) <= 1
    response = server.classifier.Classify(request(file), timeout=60)
    assert response.predictions[0].class_id in CATS


def test_a_deadline_that_is_too_short_is_told(server, cat_image: Image.Image) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        server.classifier.Classify(request(encoded(cat_image)), timeout=0.001)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def unusual_pictures(cat: Image.Image) -> dict[str, bytes]:
    """Return the cat in forms that a careless decoder fails on."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    grey = np.asarray(cat.convert("L")).astype(np.uint16) * 257
    transparent = cat.convert("RGBA")
    transparent.putalpha(128)
    black = Image.new("RGB", cat.size)
    return {
        "CMYK": encoded(cat.convert("CMYK"), "JPEG", quality=95),
        "sixteen bits": encoded(Image.fromarray(grey)),
        "a palette with transparency": encoded(cat.quantize(256), transparency=bytes(range(256))),
        "an alpha channel": encoded(transparent),
        "an animated GIF": encoded(cat, "GIF", save_all=True, append_images=[black, black]),
        "rotated by EXIF": encoded(cat.transpose(Image.Transpose.ROTATE_90), exif=exif),
        "a JPEG rotated by EXIF": encoded(
            cat.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif
        ),
        "WebP": encoded(cat, "WEBP"),
        "AVIF": encoded(cat, "AVIF", quality=90),
        "an animated AVIF": encoded(cat, "AVIF", quality=90, save_all=True, append_images=[black]),
        "a film behind a JPEG": encoded(cat, "JPEG") + np.random.default_rng(0).bytes(4_000_000),
        "a WebP of a wrong length": b"RIFF\0\0\1\0" + encoded(cat, "WEBP")[8:],
        "BMP": encoded(cat, "BMP"),
    }


def test_unusual_pictures_of_a_cat_are_cats(server, cat_image: Image.Image) -> None:
    upright = server.classifier.Classify(request(encoded(cat_image)), timeout=60)
    for name, picture in unusual_pictures(cat_image).items():
        response = server.classifier.Classify(request(picture), timeout=60)
        assert response.predictions[0].class_id in CATS, name
        assert response.view == upright.view, name


def test_a_picture_rotated_by_exif_is_seen_upright(server, cat_image: Image.Image) -> None:
    pictures = unusual_pictures(cat_image)
    upright = server.classifier.Classify(request(encoded(cat_image)), timeout=60)
    rotated = server.classifier.Classify(request(pictures["rotated by EXIF"]), timeout=60)
    assert rotated.predictions[0].class_id == upright.predictions[0].class_id
    assert rotated.predictions[0].logit == pytest.approx(upright.predictions[0].logit, abs=0.1)


def test_one_pixel_is_a_picture_like_any_other(server) -> None:
    response = server.classifier.Classify(
        request(encoded(Image.new("RGB", (1, 1), (0, 90, 200)))), timeout=60
    )
    assert len(response.predictions) == 5
    assert (response.view.source_width, response.view.source_height) == (1, 1)
