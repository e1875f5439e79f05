"""The REST form of the Open Inference Protocol: JSON tensors, binary data, and the other routes."""

import base64
import io
import json
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from foveate_serve.errors import InvalidRequestError
from foveate_serve.rest.documents import InferDocument, read_document
from foveate_serve.settings import first_error

BIAS = np.array([0.25, 0.0, -0.25], dtype=np.float32)
INFER = "/v2/models/colours/infer"


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def document(pixels: np.ndarray, *, flat: bool = False, **members: object) -> dict[str, object]:
    image = {
        "name": "image",
        "datatype": "UINT8",
        "shape": list(pixels.shape),
        "data": pixels.ravel().tolist() if flat else pixels.tolist(),
    }
    return {"inputs": [image], **members}


def binary(
    document: dict[str, object], *parts: bytes, length: int | None = None
) -> dict[str, object]:
    """Return the arguments of a request whose tensors follow the JSON."""
    header = json.dumps(document).encode()
    size = len(header) if length is None else length
    return {
        "content": header + b"".join(parts),
        "headers": {"Inference-Header-Content-Length": str(size)},
    }


@pytest.mark.parametrize("flat", [True, False])
async def test_numbers_in_json_flat_or_nested(client, red: np.ndarray, flat: bool) -> None:
    answer = await client.post(INFER, json=document(red, flat=flat, id="7"))
    assert answer.status_code == 200
    found = answer.json()
    assert (found["model_name"], found["model_version"], found["id"]) == ("colours", "1", "7")
    (output,) = found["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [1, 3])
    np.testing.assert_allclose(output["data"], [1.25, 0, -0.25], atol=1e-6)


async def test_binary_data_in_and_out(client, red: np.ndarray) -> None:
    class_ids = np.array([[2, -1]], dtype="<i8").tobytes()
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3]}
    ids = {"name": "class_ids", "datatype": "INT64", "shape": [1, 2]}
    request = {
        "inputs": [
            {**image, "parameters": {"binary_data_size": red.nbytes}},
            {**ids, "parameters": {"binary_data_size": len(class_ids)}},
        ],
        "outputs": [
            {"name": "cam.cam", "parameters": {"binary_data": True}},
            {"name": "logits", "parameters": {"binary_data": False}},
        ],
    }
    answer = await client.post(INFER, **binary(request, red.tobytes(), class_ids))
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    header, rest = json.loads(answer.content[:length]), answer.content[length:]
    maps, logits = header["outputs"]
    assert maps["parameters"] == {"binary_data_size": len(rest)}
    assert "data" not in maps
    found = np.frombuffer(rest, "<f4").reshape(maps["shape"])
    np.testing.assert_allclose(found[0, 0], 0)
    np.testing.assert_allclose(found[0, 1], 1)
    np.testing.assert_allclose(logits["data"], [1.25, 0, -0.25], atol=1e-6)


async def test_one_input_in_json_and_another_as_binary_data(client, red: np.ndarray) -> None:
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3]}
    request = {
        "parameters": {"binary_data_output": True},
        "inputs": [
            {"name": "class_ids", "datatype": "INT64", "shape": [1, 1], "data": [[0]]},
            {**image, "parameters": {"binary_data_size": red.nbytes}},
        ],
        "outputs": [{"name": "cam.cam"}],
    }
    answer = await client.post(INFER, **binary(request, red.tobytes()))
    length = int(answer.headers["inference-header-content-length"])
    np.testing.assert_allclose(np.frombuffer(answer.content[length:], "<f4"), 1)


async def test_files_in_base64_and_as_binary_data(client, red: np.ndarray) -> None:
    file = png(red[0])
    element = len(file).to_bytes(4, "little") + file
    image = {"name": "image", "datatype": "BYTES", "shape": [2]}
    texts = {**image, "data": [base64.b64encode(file).decode()] * 2}
    raw = {**image, "parameters": {"binary_data_size": 2 * len(element)}}
    wanted = [{"name": "logits", "parameters": {"classification": 2}}]
    for request in (
        {"json": {"inputs": [texts], "outputs": wanted}},
        binary({"inputs": [raw], "outputs": wanted}, element, element),
    ):
        answer = await client.post(INFER, **request)
        (output,) = answer.json()["outputs"]
        assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
        assert output["data"] == ["1.250000:0:red", "0.000000:1:green"] * 2


async def test_large_outputs_must_be_binary_data(
    client, red: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate_serve.rest.tensors.MAX_JSON_ELEMENTS", 191)
    wanted = {"name": "features.planes"}
    answer = await client.post(INFER, json=document(red, outputs=[wanted]))
    assert (answer.status_code, answer.json()["reason"]) == (400, "OUTPUT_TOO_LARGE")
    wanted["parameters"] = {"binary_data": True}
    answer = await client.post(INFER, json=document(red, outputs=[wanted]))
    length = int(answer.headers["inference-header-content-length"])
    assert len(answer.content) - length == 192 * 4


IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3]}
ZEROS = [0] * 192
MANY = 1 << 70


@pytest.mark.parametrize(
    ("request_document", "reason", "field"),
    [
        ({}, "BODY_MALFORMED", "inputs"),
        ({"inputs": 3}, "BODY_MALFORMED", "inputs"),
        ({"inputs": [], "more": 1}, "BODY_MALFORMED", "more"),
        ({"inputs": []}, "IMAGE_MISSING", "inputs"),
        ({"inputs": [IMAGE]}, "CONTENTS_MISSING", "inputs[0].data"),
        ({"inputs": [{**IMAGE, "data": ZEROS[1:]}]}, "SHAPE_MISMATCH", "inputs[0].shape"),
        ({"inputs": [{**IMAGE, "data": [*ZEROS[1:], 256]}]}, "VALUE_OUT_OF_RANGE", None),
        ({"inputs": [{**IMAGE, "data": [*ZEROS[1:], -1]}]}, "VALUE_OUT_OF_RANGE", None),
        ({"inputs": [{**IMAGE, "data": [*ZEROS[1:], MANY]}]}, "VALUE_OUT_OF_RANGE", None),
        ({"inputs": [{**IMAGE, "data": [*ZEROS[1:], 0.5]}]}, "BODY_MALFORMED", "inputs[0].data"),
        ({"inputs": [{**IMAGE, "data": [*ZEROS[1:], True]}]}, "BODY_MALFORMED", "inputs[0].data"),
        ({"inputs": [{**IMAGE, "data": [[0], [0, 1]]}]}, "SHAPE_MISMATCH", "inputs[0].data"),
        ({"inputs": [{**IMAGE, "data": [[0] * 64] * 3}]}, "SHAPE_MISMATCH", "inputs[0].shape"),
        ({"inputs": [{**IMAGE, "data": ["AAAA"] * 192}]}, "SHAPE_MISMATCH", "inputs[0].data"),
        ({"inputs": [{**IMAGE, "shape": [MANY], "data": [0]}]}, "VALUE_OUT_OF_RANGE", None),
        ({"inputs": [{**IMAGE, "datatype": "FP32", "data": ZEROS}]}, "DATATYPE_MISMATCH", None),
        (
            {"inputs": [{**IMAGE, "datatype": "BYTES", "shape": [1], "data": ["*"]}]},
            "BASE64_INVALID",
            "inputs[0].data",
        ),
        (
            {"inputs": [{**IMAGE, "datatype": "BYTES", "shape": [1], "data": [7]}]},
            "BASE64_INVALID",
            "inputs[0].data",
        ),
        (
            {"inputs": [{**IMAGE, "data": ZEROS, "parameters": {"binary_data_size": 192}}]},
            "CONTENTS_REPEATED",
            None,
        ),
        (
            {"inputs": [{**IMAGE, "parameters": {"binary_data_size": True}}]},
            "PARAMETER_INVALID",
            None,
        ),
        (
            {"inputs": [{**IMAGE, "parameters": {"binary_data_size": 192}}]},
            "BINARY_DATA_MISMATCH",
            None,
        ),
        (
            {"inputs": [{**IMAGE, "parameters": {"binary_data_size": -1}}]},
            "BINARY_DATA_MISMATCH",
            None,
        ),
        (
            {"inputs": [{**IMAGE, "parameters": {"shared_memory_region": "x"}}]},
            "SHARED_MEMORY_UNSUPPORTED",
            None,
        ),
        (
            {"inputs": [{**IMAGE, "data": ZEROS}], "parameters": {"priority": MANY}},
            "VALUE_OUT_OF_RANGE",
            None,
        ),
        (
            {"inputs": [{**IMAGE, "data": ZEROS}], "parameters": {"binary_data_output": 1}},
            "PARAMETER_INVALID",
            "parameters[binary_data_output]",
        ),
        (
            {"inputs": [{**IMAGE, "data": ZEROS}], "outputs": [{"name": "x"}]},
            "OUTPUT_NOT_FOUND",
            None,
        ),
    ],
)
async def test_bad_documents_are_refused_in_a_sentence(
    client, request_document: dict[str, object], reason: str, field: str | None
) -> None:
    answer = await client.post(INFER, json=request_document)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (400, "INVALID_ARGUMENT")
    assert told["reason"] == reason
    assert field is None or told["field"] == field
    assert len(told["error"]) < 300


async def test_binary_data_must_add_up(client, red: np.ndarray) -> None:
    image = {**IMAGE, "parameters": {"binary_data_size": red.nbytes}}
    for request, reason in (
        (binary({"inputs": [image]}, red.tobytes(), b"x"), "BINARY_DATA_MISMATCH"),
        (binary({"inputs": [image]}, red.tobytes()[1:]), "BINARY_DATA_MISMATCH"),
        (binary({"inputs": [image]}, red.tobytes(), length=10**6), "HEADER_LENGTH_INVALID"),
        (binary({"inputs": [image]}, red.tobytes(), length=7), "BODY_MALFORMED"),
    ):
        answer = await client.post(INFER, **request)
        assert (answer.status_code, answer.json()["reason"]) == (400, reason)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"NaN"])
async def test_a_body_that_is_no_document(client, body: bytes) -> None:
    answer = await client.post(INFER, content=body)
    assert (answer.status_code, answer.json()["reason"]) == (400, "BODY_MALFORMED")


def listed(unit: bytes, count: int) -> bytes:
    return b"[" + b",".join([unit] * count) + b"]"


def with_data(data: bytes) -> bytes:
    return b'{"inputs":[{"name":"image","shape":[1],"datatype":"UINT8","data":' + data + b"}]}"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"{" + b",".join(b'"%x":0' % i for i in range(5000)) + b"}", "members"),
        (with_data(listed(b"[]", 200_000)), "lists"),
        (b'{"inputs":' + listed(b"{}", 200_000) + b"}", "lists"),
        (with_data(listed(b"1", 3_000_000)), "elements"),
    ],
    ids=["members", "lists", "objects", "elements"],
)
async def test_a_document_of_many_parts_is_refused_unread(client, body: bytes, what: str) -> None:
    answer = await client.post(INFER, content=body)
    assert (answer.status_code, answer.json()["reason"]) == (413, "BODY_TOO_LARGE")
    assert what in answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        with_data(listed(b"1.5", 100_000)),
        with_data(b"[[[" + listed(b"[1]", 100_000) + b"]]]"),
        b'{"inputs":' + listed(b"{}", 100_000) + b"}",
        b'{"inputs":[],"outputs":' + listed(b"{}", 100_000) + b"}",
        b'{"inputs":[{"name":"image","datatype":"UINT8","shape":' + listed(b"[]", 100_000) + b"}]}",
    ],
    ids=["fractions", "too deep", "inputs", "outputs", "shape"],
)
def test_the_first_fault_of_a_document_ends_its_reading(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counting(error: ValidationError) -> object:
        counts.append(error.error_count())
        return first_error(error)

    monkeypatch.setattr("foveate_serve.rest.documents.first_error", counting)
    with pytest.raises(InvalidRequestError):
        read_document(InferDocument, body)
    # One or a few for each form of an element, where there are 100,000 elements.
    assert 0 < counts[0] < 20


async def test_a_large_document_is_refused(client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate_serve.rest.documents.MAX_JSON_BYTES", 100)
    answer = await client.post(INFER, content=b" " * 101)
    assert (answer.status_code, answer.json()["reason"]) == (413, "BODY_TOO_LARGE")


async def test_a_timeout_of_the_request(client, red: np.ndarray) -> None:
    answer = await client.post(INFER, json=document(red, parameters={"timeout": 1}))
    assert (answer.status_code, answer.json()["code"]) == (504, "DEADLINE_EXCEEDED")


async def test_the_routes_of_a_model_and_of_its_version(client) -> None:
    for base in ("/v2/models/colours", "/v2/models/colours/versions/1"):
        model = (await client.get(base)).json()
        assert (model["name"], model["versions"]) == ("colours", ["1"])
        assert model["inputs"][0] == {
            "name": "image",
            "datatype": "UINT8",
            "shape": [-1, 8, 8, 3],
        }
        config = (await client.get(f"{base}/config")).json()
        assert config["input"][0]["data_type"] == "TYPE_UINT8"
        assert config["parameters"] == {"scores": {"string_value": "softmax"}}
        (statistics,) = (await client.get(f"{base}/stats")).json()["model_stats"]
        assert statistics["inference_stats"]["success"] == {"count": 0, "ns": 0}
        assert (await client.get(f"{base}/ready")).status_code == 200
    for path in ("/v2/models/x", "/v2/models/x/ready", "/v2/models/colours/versions/9/config"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


async def test_statistics_count_what_http_asked_for(client, red: np.ndarray) -> None:
    await client.post(INFER, json=document(np.concatenate([red, red])))
    (statistics,) = (await client.get("/v2/models/stats")).json()["model_stats"]
    assert statistics["inference_count"] == 2
    assert statistics["inference_stats"]["success"]["count"] == 1


async def test_health_follows_the_server(client) -> None:
    assert (await client.get("/v2/health/live")).status_code == 200
    assert (await client.get("/v2/health/ready")).status_code == 200
    client.process._server.health.ready = False
    assert (await client.get("/v2/health/live")).status_code == 200
    assert (await client.get("/v2/health/ready")).status_code == 400


async def test_the_repository_is_listed_and_changed(serve, own_repository: Path) -> None:
    client: httpx2.AsyncClient = await serve(repository=own_repository, admin=True)
    ready = {"name": "colours", "version": "1", "state": "READY", "reason": ""}
    assert (await client.post("/v2/repository/index")).json() == [ready]
    model = "/v2/repository/models/colours"
    unload = {"parameters": {"unload_dependents": False}}
    assert (await client.post(f"{model}/unload", json=unload)).status_code == 200
    (gone,) = (await client.post("/v2/repository/index")).json()
    assert gone["state"] == "UNAVAILABLE"
    assert (await client.post("/v2/repository/index", json={"ready": True})).json() == []
    assert (await client.get("/v2/models/colours/ready")).status_code == 400
    answer = await client.get("/v2/models/colours")
    assert (answer.status_code, answer.json()["code"]) == (400, "FAILED_PRECONDITION")
    answer = await client.post(f"{model}/load", json={"parameters": {"config": "{}"}})
    assert (answer.status_code, answer.json()["reason"]) == (400, "PARAMETER_UNSUPPORTED")
    assert (await client.post(f"{model}/load")).status_code == 200
    assert (await client.get("/v2/models/colours/ready")).status_code == 200


async def test_loading_is_refused_unless_it_is_enabled(client) -> None:
    answer = await client.post("/v2/repository/models/colours/load")
    assert (answer.status_code, answer.json()["reason"]) == (403, "ADMIN_DISABLED")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/x/register"),
        ("GET", "/v2/cudasharedmemory/region/x/status"),
        ("POST", "/v2/cudasharedmemory/unregister"),
    ],
)
async def test_shared_memory_is_not_supported(client, method: str, path: str) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.json()["reason"]) == (501, "SHARED_MEMORY_UNSUPPORTED")


async def test_the_extensions_name_binary_data(client) -> None:
    server = (await client.get("/v2")).json()
    assert server["name"] == "foveate"
    assert {"binary_tensor_data", "classification"} <= set(server["extensions"])
