"""`:classify`: pictures as bodies and in forms, the query, and overlays."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PATH = "/v1/models/colours:classify"


@pytest.fixture
def picture(red: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(red[0]).save(file, format="PNG")
    return file.getvalue()


async def test_a_picture_as_the_body(client, picture: bytes) -> None:
    for path in (PATH, "/v1/models/colours/versions/1:classify"):
        answer = await client.post(path, content=picture)
        assert answer.status_code == 200
        found = answer.json()
        assert (found["model"], found["version"], found["trust"]) == ("colours", "1", None)
        assert [p["label"] for p in found["predictions"]] == ["red", "green", "blue"]
        assert set(found["predictions"][0]) == {"class_id", "label", "score", "confidence"}
        scores = np.exp([1.25, 0, -0.25])
        np.testing.assert_allclose(
            [p["score"] for p in found["predictions"]], scores / scores.sum(), rtol=1e-5
        )
        assert found["cams"] == []


@pytest.mark.parametrize("as_file", [True, False])
async def test_a_picture_in_a_form(client, picture: bytes, as_file: bool) -> None:
    other = {"note": (None, b"hello")}
    image = ("cat.png", picture, "image/png") if as_file else (None, picture)
    answer = await client.post(PATH, files={**other, "image": image})
    assert answer.json()["predictions"][0]["label"] == "red"


async def test_forms_without_one_picture_are_refused(client, picture: bytes) -> None:
    for files in (
        {"other": ("cat.png", picture)},
        [("image", ("a.png", picture)), ("image", ("b.png", picture))],
        [(str(i), (None, b"x")) for i in range(20)],
    ):
        answer = await client.post(PATH, files=files)
        assert (answer.status_code, answer.json()["reason"]) == (400, "FORM_INVALID")
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = await client.post(PATH, content=picture, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["reason"]) == (400, "FORM_INVALID")


async def test_a_form_is_never_a_file_on_disk(
    client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format="PNG")
    assert len(file.getvalue()) > 1 << 20
    answer = await client.post(PATH, files={"image": ("noise.png", file.getvalue())})
    assert answer.status_code == 200


async def test_maps_and_their_numbers(client, picture: bytes) -> None:
    answer = await client.post(f"{PATH}?top_k=1&cam=cam&cam_top=1&classes=1,2", content=picture)
    found = answer.json()
    assert len(found["predictions"]) == 1
    assert [cam["label"] for cam in found["cams"]] == ["red", "green", "blue"]
    cam = found["cams"][0]
    assert (cam["method"], cam["height"], cam["width"]) == ("cam", 8, 8)
    assert (cam["minimum"], cam["maximum"], cam["against"]) == (1.0, 1.0, None)
    assert set(cam) >= {"class_id", "explained"}
    answer = await client.post(f"{PATH}?cam_top=1&against=1", content=picture)
    assert answer.json()["cams"][0]["against"] == 1
    assert "check" not in answer.json()["cams"][0]
    answer = await client.post(f"{PATH}?check=8", content=picture)
    assert answer.json()["cams"][0]["check"]["copies"] == 8
    assert (await client.post(f"{PATH}?cam=false", content=picture)).json()["cams"] == []


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/png", "PNG"),
        ("image/jpeg", "JPEG"),
        ("image/*", "PNG"),
        ("text/html, IMAGE/PNG;q=0.9, */*", "PNG"),
    ],
)
async def test_an_overlay(client, picture: bytes, accept: str, kind: str) -> None:
    answer = await client.post(f"{PATH}?classes=1", content=picture, headers={"accept": accept})
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
    with Image.open(io.BytesIO(answer.content)) as overlay:
        assert (overlay.format, overlay.size) == (kind, (8, 8))


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", "*/*, image/png", "text/html"])
async def test_json_unless_a_picture_is_preferred(client, picture: bytes, accept: str) -> None:
    answer = await client.post(PATH, content=picture, headers={"accept": accept})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("top_k=x", "query[top_k]"),
        ("top_k=1_0", "query[top_k]"),
        ("check=7", "query[check]"),
        ("top_k=99999999999", "query[top_k]"),
        ("top_k=0", "query[top_k]"),
        ("top_k=1&top_k=2", "query[top_k]"),
        ("threshold=nan", "query[threshold]"),
        ("cam=nothing", "query[cam]"),
        ("cam=false&cam_top=1", "query[cam]"),
        ("cam_top=9", "query[cam_top]"),
        ("classes=1,,2", "query[classes]"),
        ("classes=7", "query[classes]"),
        ("trust=maybe", "query[trust]"),
        ("trust=false&coverage=0.9", "query[trust]"),
        ("timeout=0", "query[timeout]"),
        ("timeout=inf", "query[timeout]"),
        ("colour=red", "query[colour]"),
    ],
)
async def test_bad_queries_name_the_parameter(
    client, picture: bytes, query: str, field: str
) -> None:
    answer = await client.post(f"{PATH}?{query}", content=picture)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (400, "INVALID_ARGUMENT")
    assert told["field"] == field


async def test_an_overlay_is_of_one_class(client, picture: bytes) -> None:
    for query in ("cam_top=2", "cam_top=0", "classes=0,1", "cam_top=1&classes=1", "cam=false"):
        answer = await client.post(
            f"{PATH}?{query}", content=picture, headers={"accept": "image/png"}
        )
        assert (answer.status_code, answer.json()["reason"]) == (400, "PARAMETER_INVALID"), query


async def test_what_is_no_picture(client) -> None:
    for content, reason in ((b"", "IMAGE_MISSING"), (b"no picture", "IMAGE_UNSUPPORTED")):
        answer = await client.post(PATH, content=content)
        told = answer.json()
        assert (answer.status_code, told["reason"], told["field"]) == (400, reason, "body")
    answer = await client.post("/v1/models/x:classify", content=b"x")
    assert (answer.status_code, answer.json()["reason"]) == (404, "MODEL_NOT_FOUND")


async def test_a_timeout(client, picture: bytes) -> None:
    answer = await client.post(f"{PATH}?timeout=0.000001", content=picture)
    assert (answer.status_code, answer.json()["code"]) == (504, "DEADLINE_EXCEEDED")


async def test_a_large_picture(serve, picture: bytes) -> None:
    client = await serve(max_image_bytes=len(picture) - 1)
    answer = await client.post(PATH, content=picture)
    assert (answer.status_code, answer.json()["reason"]) == (413, "IMAGE_TOO_LARGE")


async def test_trust_where_the_bundle_has_none(client, picture: bytes) -> None:
    answer = await client.post(f"{PATH}?trust=true", content=picture)
    assert answer.status_code == 400
    assert answer.json()["code"] == "FAILED_PRECONDITION"
