"""Checks with tritonclient, run by test_open_inference.py in an environment of its own.

    python open_inference_client.py ADDRESS FOLDER CHECK

FOLDER holds photographs (0.jpg, 1.jpg, ...) and, in expected.npz, what
Foveate's own service says of them: `best` [N, 5], `logits` [N, 5] of those,
`cams` [N, 2, h, w] of the two best classes, and `features` [C, h, w] of the first.
"""

import asyncio
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
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


def tensor(name: str, array: np.ndarray, datatype: str, module=triton) -> triton.InferInput:
    made = module.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def files(*encoded: bytes) -> triton.InferInput:
    return tensor("image", np.array(encoded, dtype=np.object_), "BYTES")


def pixels(seed: int, count: int = 1) -> triton.InferInput:
    noise = np.random.default_rng(seed).integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
    return tensor("image", noise, "UINT8")


def wanted(name: str, **options: int) -> triton.InferRequestedOutput:
    return triton.InferRequestedOutput(name, **options)


def fails(call, code: str) -> InferenceServerException:
    raised = None
    try:
        call()
    except InferenceServerException as error:
        raised = error
    assert raised is not None, f"{code} was expected"
    assert raised.status() == f"StatusCode.{code}", raised
    return raised


def metadata(client: triton.InferenceServerClient, material: Material) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    fails(lambda: client.is_model_ready(MODEL, "7"), "NOT_FOUND")
    server = client.get_server_metadata()
    assert server.name == "foveate"
    assert "statistics" in server.extensions
    model = client.get_model_metadata(MODEL, as_json=True)
    assert (model["name"], model["versions"]) == (MODEL, ["1"])
    assert model["inputs"][0] == {
        "name": "image",
        "datatype": "UINT8",
        "shape": ["-1", "224", "224", "3"],
    }
    names = [output["name"] for output in model["outputs"]]
    assert names[:2] == ["logits", "cam.cam"]
    assert LAYER in names
    config = client.get_model_config(MODEL, as_json=True)["config"]
    assert config["backend"] == "onnxruntime"
    assert config["max_batch_size"] >= 1
    assert config["input"][1]["optional"]


def repository(client: triton.InferenceServerClient, material: Material) -> None:
    index = client.get_model_repository_index()
    assert [(m.name, m.version, m.state) for m in index.models] == [
        (MODEL, "1", "READY"),
        (DIGITS, "1", "READY"),
    ]
    fails(lambda: client.load_model(DIGITS), "PERMISSION_DENIED")
    fails(lambda: client.unload_model(DIGITS), "PERMISSION_DENIED")
    assert client.is_model_ready(DIGITS)


def control(client: triton.InferenceServerClient, material: Material) -> None:
    client.unload_model(DIGITS)
    assert not client.is_model_ready(DIGITS)
    fails(lambda: client.infer(DIGITS, [pixels(0)]), "FAILED_PRECONDITION")
    states = {m.name: m.state for m in client.get_model_repository_index().models}
    assert states == {MODEL: "READY", DIGITS: "UNAVAILABLE"}
    client.load_model(DIGITS)
    client.load_model(DIGITS)
    assert client.is_model_ready(DIGITS)
    assert client.infer(DIGITS, [pixels(0)]).as_numpy("logits").shape == (1, 10)
    fails(lambda: client.load_model("x"), "NOT_FOUND")
    fails(lambda: client.load_model(DIGITS, config="{}"), "INVALID_ARGUMENT")


def statistics(client: triton.InferenceServerClient, material: Material) -> None:
    def read():
        (found,) = client.get_inference_statistics(DIGITS).model_stats
        return found

    before = read()
    client.infer(DIGITS, [pixels(0)])
    client.infer(DIGITS, [pixels(0, 3)])
    fails(lambda: client.infer(DIGITS, [files(b"x")]), "INVALID_ARGUMENT")
    after = read()
    assert after.inference_count - before.inference_count == 4
    assert 2 <= after.execution_count - before.execution_count <= 4
    assert after.last_inference > before.last_inference
    assert sum(batch.compute_infer.count for batch in after.batch_stats) == after.execution_count
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        new = getattr(after.inference_stats, name)
        old = getattr(before.inference_stats, name)
        assert new.count - old.count == 2, name
        assert new.ns > old.ns, name
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    every = client.get_inference_statistics().model_stats
    assert {found.name for found in every} == {MODEL, DIGITS}


def raw_tensors(client: triton.InferenceServerClient, material: Material) -> None:
    together = client.infer(DIGITS, [pixels(1, 20)], request_id="20 digits")
    logits = together.as_numpy("logits")
    assert logits.shape == (20, 10)
    assert together.get_response().id == "20 digits"
    noise = np.random.default_rng(1).integers(0, 256, (20, 28, 28, 1), dtype=np.uint8)
    alone = [
        client.infer(DIGITS, [tensor("image", picture[np.newaxis], "UINT8")]).as_numpy("logits")[0]
        for picture in noise
    ]
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)
    assert len({row.tobytes() for row in logits.round(4)}) == 20
    # More than the 4 MiB that gRPC takes where it is not told otherwise.
    noise = np.random.default_rng(2).integers(0, 256, (28, 224, 224, 3), dtype=np.uint8)
    assert noise.nbytes > 4 << 20
    large = client.infer(MODEL, [tensor("image", noise, "UINT8")]).as_numpy("logits")
    last = client.infer(MODEL, [tensor("image", noise[-1:], "UINT8")]).as_numpy("logits")
    np.testing.assert_allclose(large[-1], last[0], rtol=1e-3, atol=1e-3)


def encoded_files(client: triton.InferenceServerClient, material: Material) -> None:
    count = len(material.files)
    answer = client.infer(MODEL, [files(*material.files)])
    logits = answer.as_numpy("logits")
    assert logits.shape == (count, 1000)
    best = np.argsort(-logits, axis=1)[:, :5]
    np.testing.assert_array_equal(best, material.best)
    found = np.take_along_axis(logits, best, axis=1)
    np.testing.assert_allclose(found, material.logits, rtol=1e-4, atol=1e-4)

    answer = client.infer(
        MODEL, [files(*material.files)], outputs=[wanted("logits", class_count=5)]
    )
    texts = answer.as_numpy("logits")
    assert texts.shape == (count, 5)
    parts = [[text.decode().split(":", 2) for text in row] for row in texts]
    assert [[int(index) for _, index, _ in row] for row in parts] == material.best.tolist()
    values = [[float(value) for value, _, _ in row] for row in parts]
    np.testing.assert_allclose(values, material.logits, rtol=1e-4, atol=1e-4)
    assert all(label for row in parts for _, _, label in row)


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
    photographs = files(*material.files)
    square = tensor("image", np.zeros((1, 32, 32, 1), dtype=np.uint8), "UINT8")
    odd = np.resize(np.float32([np.nan, np.inf, -np.inf, 0.5]), (1, 28, 28, 1))
    single = tensor("image", odd, "FP32")
    no_class = tensor("class_ids", np.full((1, 1), np.nan, dtype=np.float32), "FP32")
    for call, code in (
        (lambda: client.infer("x", [good]), "NOT_FOUND"),
        (lambda: client.infer(DIGITS, [good], model_version="9"), "NOT_FOUND"),
        (lambda: client.get_model_metadata("x"), "NOT_FOUND"),
        (lambda: client.get_model_config("x"), "NOT_FOUND"),
        (lambda: client.get_inference_statistics("x"), "NOT_FOUND"),
        (lambda: client.infer(DIGITS, [square]), "INVALID_ARGUMENT"),
        (lambda: client.infer(DIGITS, [single]), "INVALID_ARGUMENT"),
        (lambda: client.infer(DIGITS, [good, no_class]), "INVALID_ARGUMENT"),
        (lambda: client.infer(DIGITS, [pixels(0, 33)]), "INVALID_ARGUMENT"),
        (lambda: client.infer(DIGITS, [files(b"no picture")]), "INVALID_ARGUMENT"),
        (lambda: client.infer(DIGITS, [good], outputs=[wanted("x")]), "INVALID_ARGUMENT"),
        (lambda: client.infer(DIGITS, [good], timeout=1), "DEADLINE_EXCEEDED"),
        # gRPC rounds up to a millisecond, in which a digit may have its answer.
        (lambda: client.infer(MODEL, [photographs], client_timeout=1e-6), "DEADLINE_EXCEEDED"),
        (client.get_trace_settings, "UNIMPLEMENTED"),
        (client.get_log_settings, "UNIMPLEMENTED"),
        (client.get_system_shared_memory_status, "UNIMPLEMENTED"),
    ):
        error = fails(call, code)
        assert "Traceback" not in error.message()
        assert "Error(" not in error.message()
    assert client.infer(DIGITS, [good], priority=1, timeout=10_000_000).as_numpy("logits").any()


def callbacks(client: triton.InferenceServerClient, material: Material) -> None:
    answers: queue.Queue = queue.Queue()
    for index in range(8):
        client.async_infer(
            DIGITS,
            [pixels(index)],
            lambda result, error: answers.put((result, error)),
            request_id=str(index),
        )
    found = [answers.get(timeout=30) for _ in range(8)]
    assert all(error is None for _, error in found)
    assert {result.get_response().id for result, _ in found} == {str(i) for i in range(8)}


def stream(client: triton.InferenceServerClient, material: Material) -> None:
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for index in range(12):
        picture = files(b"no picture") if index % 4 == 1 else pixels(index)
        client.async_stream_infer(DIGITS, [picture], request_id=str(index))
    client.stop_stream()
    found = [answers.get(timeout=30) for _ in range(12)]
    for index, (result, error) in enumerate(found):
        if index % 4 == 1:
            assert error.message().startswith("INVALID_ARGUMENT: the bytes are no picture")
            continue
        assert error is None
        assert result.get_response().id == str(index)
        expected = client.infer(DIGITS, [pixels(index)]).as_numpy("logits")
        np.testing.assert_allclose(result.as_numpy("logits"), expected, rtol=1e-4, atol=1e-5)


async def aio(address: str) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(DIGITS)
        assert (await client.get_model_metadata(DIGITS)).name == DIGITS
        answers = await asyncio.gather(
            *(client.infer(DIGITS, [pixels(index)], request_id=str(index)) for index in range(8))
        )
        assert [a.get_response().id for a in answers] == [str(index) for index in range(8)]

        async def requests():
            for index in range(6):
                model = "x" if index == 2 else DIGITS
                yield {"model_name": model, "inputs": [pixels(index)], "request_id": str(index)}

        streamed = [pair async for pair in client.stream_infer(requests())]
        assert [error is None for _, error in streamed] == [i != 2 for i in range(6)]
        assert streamed[2][1].message().startswith("NOT_FOUND: ")
        for index, (result, error) in enumerate(streamed):
            if error is None:
                expected = answers[index].as_numpy("logits")
                np.testing.assert_allclose(
                    result.as_numpy("logits"), expected, rtol=1e-4, atol=1e-5
                )
        status = None
        try:
            await client.infer("x", [pixels(0)])
        except InferenceServerException as error:
            status = error.status()
        assert status == "StatusCode.NOT_FOUND"


CHECKS = (
    metadata,
    repository,
    control,
    statistics,
    raw_tensors,
    encoded_files,
    maps,
    errors,
    callbacks,
    stream,
)


def main(address: str, folder: str, name: str) -> None:
    if name == "aio":
        asyncio.run(aio(address))
        return
    (check,) = (check for check in CHECKS if check.__name__ == name)
    with triton.InferenceServerClient(address) as client:
        check(client, Material(Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
