"""Checks with tritonclient.http, run by test_http.py in an environment of its own.

python open_inference_http_client.py ADDRESS FOLDER CHECK

FOLDER is as in open_inference_client.py.
"""

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

MODEL = "efficientnet_lite0"
DIGITS = "lenet5"
LAYER = "features.blocks.4"


class Material:
    """The photographs and what is right for them."""

    def __init__(self, folder: Path) -> None:
        self.files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
        with np.load(folder / "expected.npz") as arrays:
            self.best, self.logits = arrays["best"], arrays["logits"]
            self.cams, self.features = arrays["cams"], arrays["features"]


def tensor(name: str, array: np.ndarray, datatype: str, **options: bool) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, **options)
    return made


def files(*encoded: bytes) -> triton.InferInput:
    return tensor("image", np.array(encoded, dtype=np.object_), "BYTES")


def pixels(seed: int, count: int = 1, **options: bool) -> triton.InferInput:
    noise = np.random.default_rng(seed).integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
    return tensor("image", noise, "UINT8", **options)


def wanted(name: str, **options: object) -> triton.InferRequestedOutput:
    return triton.InferRequestedOutput(name, **options)


def fails(call, status: str) -> InferenceServerException:
    raised = None
    try:
        call()
    except InferenceServerException as error:
        raised = error
    assert raised is not None, f"{status} was expected"
    assert raised.status() == status, raised
    return raised


def metadata(client: triton.InferenceServerClient, material: Material) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "7")
    server = client.get_server_metadata()
    assert server["name"] == "foveate"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata(MODEL)
    assert (model["name"], model["versions"]) == (MODEL, ["1"])
    assert model["inputs"][0] == {
        "name": "image",
        "datatype": "UINT8",
        "shape": [-1, 224, 224, 3],
    }
    names = [output["name"] for output in model["outputs"]]
    assert names[:2] == ["logits", "cam.cam"]
    config = client.get_model_config(MODEL, "1")
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] >= 1
    assert config["input"][1]["optional"]


def repository(client: triton.InferenceServerClient, material: Material) -> None:
    index = client.get_model_repository_index()
    assert [(m["name"], m["version"], m["state"]) for m in index] == [
        (MODEL, "1", "READY"),
        (DIGITS, "1", "READY"),
    ]
    fails(lambda: client.load_model(DIGITS), "403")
    fails(lambda: client.unload_model(DIGITS), "403")
    assert client.is_model_ready(DIGITS)


def control(client: triton.InferenceServerClient, material: Material) -> None:
    client.unload_model(DIGITS)
    assert not client.is_model_ready(DIGITS)
    fails(lambda: client.infer(DIGITS, [pixels(0)]), "400")
    states = {m["name"]: m["state"] for m in client.get_model_repository_index()}
    assert states == {MODEL: "READY", DIGITS: "UNAVAILABLE"}
    client.load_model(DIGITS)
    assert client.is_model_ready(DIGITS)
    assert client.infer(DIGITS, [pixels(0)]).as_numpy("logits").shape == (1, 10)
    fails(lambda: client.load_model("x"), "404")
    fails(lambda: client.load_model(DIGITS, config="{}"), "400")


def statistics(client: triton.InferenceServerClient, material: Material) -> None:
    def read():
        (found,) = client.get_inference_statistics(DIGITS)["model_stats"]
        return found

    before = read()
    client.infer(DIGITS, [pixels(0)])
    client.infer(DIGITS, [pixels(0, 3)])
    fails(lambda: client.infer(DIGITS, [files(b"x")]), "400")
    after = read()
    assert after["inference_count"] - before["inference_count"] == 4
    success = [found["inference_stats"]["success"]["count"] for found in (before, after)]
    assert success[1] - success[0] == 2
    every = client.get_inference_statistics()["model_stats"]
    assert {found["name"] for found in every} == {MODEL, DIGITS}


def raw_tensors(client: triton.InferenceServerClient, material: Material) -> None:
    together = client.infer(DIGITS, [pixels(1, 20)], request_id="20 digits")
    logits = together.as_numpy("logits")
    assert logits.shape == (20, 10)
    assert together.get_response()["id"] == "20 digits"
    # In JSON both ways, and mixed.
    for binary_in in (True, False):
        for binary_out in (True, False):
            answer = client.infer(
                DIGITS,
                [pixels(1, 20, binary_data=binary_in)],
                outputs=[wanted("logits", binary_data=binary_out)],
            )
            np.testing.assert_allclose(answer.as_numpy("logits"), logits, rtol=1e-4, atol=1e-5)
    noise = np.random.default_rng(2).integers(0, 256, (28, 224, 224, 3), dtype=np.uint8)
    large = client.infer(MODEL, [tensor("image", noise, "UINT8")]).as_numpy("logits")
    last = client.infer(MODEL, [tensor("image", noise[-1:], "UINT8")]).as_numpy("logits")
    np.testing.assert_allclose(large[-1], last[0], rtol=1e-3, atol=1e-3)


def encoded_files(client: triton.InferenceServerClient, material: Material) -> None:
    count = len(material.files)
    logits = client.infer(MODEL, [files(*material.files)]).as_numpy("logits")
    assert logits.shape == (count, 1000)
    best = np.argsort(-logits, axis=1)[:, :5]
    np.testing.assert_array_equal(best, material.best)
    found = np.take_along_axis(logits, best, axis=1)
    np.testing.assert_allclose(found, material.logits, rtol=1e-4, atol=1e-4)
    for binary in (True, False):
        answer = client.infer(
            MODEL,
            [files(*material.files)],
            outputs=[wanted("logits", class_count=5, binary_data=binary)],
        )
        texts = answer.as_numpy("logits")
        assert texts.shape == (count, 5)
        rows = [[(t if isinstance(t, str) else t.decode()).split(":") for t in r] for r in texts]
        assert [[int(part[1]) for part in row] for row in rows] == material.best.tolist()


def maps(client: triton.InferenceServerClient, material: Material) -> None:
    count = len(material.files)
    for ids in (material.best[:, :2], np.tile([-1, -2], (count, 1))):
        answer = client.infer(
            MODEL,
            [files(*material.files), tensor("class_ids", ids.astype(np.int64), "INT64")],
            outputs=[wanted("cam.cam"), wanted(LAYER)],
        )
        np.testing.assert_allclose(answer.as_numpy("cam.cam"), material.cams, rtol=1e-3, atol=1e-3)
        features = answer.as_numpy(LAYER)
        np.testing.assert_allclose(features[0], material.features, rtol=1e-3, atol=1e-3)
        assert answer.as_numpy("logits") is None


def errors(client: triton.InferenceServerClient, material: Material) -> None:
    good = pixels(0)
    square = tensor("image", np.zeros((1, 32, 32, 1), dtype=np.uint8), "UINT8")
    single = tensor("image", np.zeros((1, 28, 28, 1), dtype=np.float32), "FP32")
    for call, status in (
        (lambda: client.infer("x", [good]), "404"),
        (lambda: client.infer(DIGITS, [good], model_version="9"), "404"),
        (lambda: client.get_model_metadata("x"), "404"),
        (lambda: client.get_model_config("x"), "404"),
        (lambda: client.get_inference_statistics("x"), "404"),
        (lambda: client.infer(DIGITS, [square]), "400"),
        (lambda: client.infer(DIGITS, [single]), "400"),
        (lambda: client.infer(DIGITS, [pixels(0, 33)]), "400"),
        (lambda: client.infer(DIGITS, [files(b"no picture")]), "400"),
        (lambda: client.infer(DIGITS, [good], outputs=[wanted("x")]), "400"),
        (lambda: client.infer(DIGITS, [good], timeout=1), "504"),
        (lambda: client.infer(DIGITS, [good], request_compression_algorithm="gzip"), "415"),
        (client.get_system_shared_memory_status, "501"),
        (client.get_cuda_shared_memory_status, "501"),
    ):
        error = fails(call, status)
        assert "Traceback" not in error.message()
        assert "Error(" not in error.message()
    assert client.infer(DIGITS, [good], priority=1, timeout=10_000_000).as_numpy("logits").any()


def async_requests(client: triton.InferenceServerClient, material: Material) -> None:
    running = [
        client.async_infer(DIGITS, [pixels(index)], request_id=str(index)) for index in range(8)
    ]
    found = [request.get_result() for request in running]
    assert [result.get_response()["id"] for result in found] == [str(i) for i in range(8)]


CHECKS = (
    metadata,
    repository,
    control,
    statistics,
    raw_tensors,
    encoded_files,
    maps,
    errors,
    async_requests,
)


def main(address: str, folder: str, name: str) -> None:
    (check,) = (check for check in CHECKS if check.__name__ == name)
    with triton.InferenceServerClient(address, concurrency=4) as client:
        check(client, Material(Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
