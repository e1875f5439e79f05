"""The Open Inference Protocol over a real engine, without gRPC."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from google.rpc.code_pb2 import Code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foveate.inference import open_inference_pb2 as pb
from foveate.status import ErrorStatus
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.cores import ANY_CORE
from foveate_runtime.imaging.decode import ImageLimits
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.engine.engine import Engine, Limits
from foveate_serve.engine.explain import ExplanationLimits
from foveate_serve.errors import ServeError
from foveate_serve.repository.repository import Repository
from foveate_serve.rpc.errors import status_of
from foveate_serve.rpc.handlers import RepositoryHandler
from foveate_serve.rpc.oip.handler import InferenceHandler
from foveate_serve.rpc.oip.tensors import write_bytes
from foveate_serve.statistics import Statistics

from ....encoding import encoded

LIMITS = Limits(
    image=ImageLimits(max_bytes=4096, max_pixels=100),
    explanation=ExplanationLimits(max_cam_classes=3, max_feature_bytes=4 * 3 * 64 * 4),
)
MAX_IMAGES = 6
BIAS = np.array([0.25, 0.0, -0.25], dtype=np.float32)


class Service:
    """The handler over an engine whose one model is `colours`."""

    def __init__(
        self,
        root: Path,
        make_runner=create_runner,
        *,
        admin: bool = False,
        policy: BatchPolicy | None = None,
    ) -> None:
        self.statistics = Statistics()
        policy = policy or BatchPolicy(max_batch=4, max_delay=0.05)
        repository = Repository(root, make_runner, policy, self.statistics)
        self.engine = Engine(repository, LIMITS, image_threads=2, observer=self.statistics)
        self.ready = True
        self.handler = InferenceHandler(
            self.engine,
            self.statistics,
            RepositoryHandler(repository, enabled=admin),
            ready=lambda: self.ready,
            max_images=MAX_IMAGES,
        )

    async def infer(self, message: pb.ModelInferRequest) -> dict[str, np.ndarray]:
        return arrays(await self.handler.model_infer(message, None))

    async def fails(self, message: pb.ModelInferRequest) -> ErrorStatus:
        with pytest.raises(ServeError) as raised:
            await self.handler.model_infer(message, None)
        return status_of(raised.value)


@pytest_asyncio.fixture
async def service(tmp_path: Path, write_bundle: Callable[..., Path]) -> AsyncIterator[Service]:
    write_bundle()
    service = Service(tmp_path / "repository")
    await service.engine.repository.open()
    yield service
    await service.engine.close()


def arrays(response: pb.ModelInferResponse) -> dict[str, np.ndarray]:
    assert len(response.outputs) == len(response.raw_output_contents)
    found = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        assert output.datatype == "FP32"
        found[output.name] = np.frombuffer(raw, "<f4").reshape(output.shape)
    return found


def plain(*colours: tuple[int, int, int]) -> np.ndarray:
    """Return pictures of one colour each: uint8 [N, 8, 8, 3]."""
    return np.stack([np.full((8, 8, 3), colour, dtype=np.uint8) for colour in colours])


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def request(
    pixels: np.ndarray | None = None,
    *,
    class_ids: list[list[int]] | None = None,
    outputs: tuple[str, ...] = (),
    **fields: object,
) -> pb.ModelInferRequest:
    pixels = plain(RED) if pixels is None else pixels
    message = pb.ModelInferRequest(model_name="colours", **fields)
    message.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    message.raw_input_contents.append(pixels.tobytes())
    if class_ids is not None:
        ids = np.array(class_ids, dtype="<i8")
        message.inputs.add(name="class_ids", datatype="INT64", shape=ids.shape)
        message.raw_input_contents.append(ids.tobytes())
    for name in outputs:
        message.outputs.add(name=name)
    return message


def of_files(*pictures: bytes, shape: tuple[int, ...] | None = None) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="colours")
    message.inputs.add(name="image", datatype="BYTES", shape=shape or (len(pictures),))
    message.raw_input_contents.append(write_bytes(pictures))
    return message


async def test_pictures_come_back_in_their_order(service: Service) -> None:
    pixels = plain(BLUE, RED, GREEN, (10, 20, 30), RED, BLUE)
    found = await service.infer(request(pixels))
    assert list(found) == ["logits"]
    expected = pixels.mean(axis=(1, 2)) / 255 + BIAS
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5)


async def test_pictures_of_one_request_share_batches(service: Service) -> None:
    await service.infer(request(plain(*[RED] * 6)))
    found = service.statistics.of("colours", "1")
    assert found.inferences == 6
    assert found.executions == 2
    assert sorted(found.batches) == [2, 4]


async def test_encoded_pictures_give_the_same(service: Service) -> None:
    pixels = plain(GREEN, BLUE)
    files = [encoded(picture) for picture in pixels]
    plainly = await service.infer(request(pixels))
    for shape in ((2,), (2, 1)):
        found = await service.infer(of_files(*files, shape=shape))
        np.testing.assert_array_equal(found["logits"], plainly["logits"])


async def test_contents_give_the_same_as_plain_bytes(service: Service) -> None:
    message = request(plain(GREEN, BLUE), class_ids=[[0], [2]], outputs=("cam.cam",))
    typed = pb.ModelInferRequest()
    typed.CopyFrom(message)
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.uint_contents.extend(plain(GREEN, BLUE).ravel().tolist())
    typed.inputs[1].contents.int64_contents.extend([0, 2])
    a, b = await service.infer(message), await service.infer(typed)
    np.testing.assert_array_equal(a["cam.cam"], b["cam.cam"])

    files = pb.ModelInferRequest(model_name="colours")
    contents = pb.InferTensorContents(bytes_contents=[encoded(plain(RED)[0])])
    files.inputs.add(name="image", datatype="BYTES", shape=(1,), contents=contents)
    found = await service.infer(files)
    np.testing.assert_allclose(found["logits"], [[1.25, 0, -0.25]], atol=1e-6)


async def test_maps_and_features_are_outputs_by_name(service: Service) -> None:
    pixels = plain((200, 100, 0), BLUE)
    found = await service.infer(
        request(pixels, class_ids=[[1, -1], [-1, 0]], outputs=("cam.cam", "features.planes"))
    )
    planes = pixels.transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(found["features.planes"], planes, atol=1e-6)
    expected = np.stack([planes[0, [1, 0]], planes[1, [2, 0]]])
    np.testing.assert_allclose(found["cam.cam"], expected, atol=1e-6)
    assert list(found) == ["cam.cam", "features.planes"]


async def test_maps_without_class_ids_are_those_of_the_best_class(service: Service) -> None:
    found = await service.infer(request(plain(GREEN, BLUE), outputs=("logits", "cam.cam")))
    assert found["cam.cam"].shape == (2, 1, 8, 8)
    assert found["cam.cam"].min() == 1.0


async def test_classification_gives_the_best_classes_as_texts(service: Service) -> None:
    message = request(plain(GREEN, RED))
    output = message.outputs.add(name="logits")
    output.parameters["classification"].int64_param = 2
    response = await service.handler.model_infer(message, None)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [2, 2])
    texts = [b"1.000000:1:green", b"0.250000:0:red", b"1.250000:0:red", b"0.000000:1:green"]
    assert response.raw_output_contents[0] == write_bytes(texts)

    output.parameters["classification"].int64_param = 1000
    response = await service.handler.model_infer(message, None)
    assert list(response.outputs[0].shape) == [2, 3]


async def test_the_answer_repeats_the_name_of_the_request(service: Service) -> None:
    response = await service.handler.model_infer(request(id="a-1"), None)
    assert (response.id, response.model_name, response.model_version) == ("a-1", "colours", "1")


def changed(change: Callable[[pb.ModelInferRequest], object], **options) -> pb.ModelInferRequest:
    message = request(**options)
    change(message)
    return message


def set_shape(*shape: int) -> Callable[[pb.ModelInferRequest], None]:
    def change(message: pb.ModelInferRequest) -> None:
        del message.inputs[0].shape[:]
        message.inputs[0].shape.extend(shape)

    return change


def parameter(name: str, **value: object) -> Callable[[pb.ModelInferRequest], None]:
    return lambda message: message.parameters[name].MergeFrom(pb.InferParameter(**value))


def classification(name: str, **value: object) -> pb.ModelInferRequest:
    message = request(outputs=(name,))
    message.outputs[0].parameters["classification"].MergeFrom(pb.InferParameter(**value))
    return message


INVALID = {
    "no inputs": (pb.ModelInferRequest(model_name="colours"), "IMAGE_MISSING", "inputs"),
    "no image": (
        pb.ModelInferRequest(
            model_name="colours",
            inputs=[pb.ModelInferRequest.InferInputTensor(name="class_ids")],
        ),
        "IMAGE_MISSING",
        "inputs",
    ),
    "unknown input": (
        changed(lambda m: m.inputs.add(name="mask") and m.raw_input_contents.append(b"")),
        "INPUT_NOT_FOUND",
        "inputs[1].name",
    ),
    "input twice": (
        changed(lambda m: m.inputs.add(name="image") and m.raw_input_contents.append(b"")),
        "INPUT_REPEATED",
        "inputs[1].name",
    ),
    "datatype": (
        changed(lambda m: setattr(m.inputs[0], "datatype", "FP32")),
        "DATATYPE_MISMATCH",
        "inputs[0].datatype",
    ),
    "no shape": (changed(set_shape()), "SHAPE_INVALID", "inputs[0].shape"),
    "no batch dimension": (changed(set_shape(8, 8, 3)), "SHAPE_INVALID", "inputs[0].shape"),
    "negative": (changed(set_shape(1, -8, -8, 3)), "SHAPE_INVALID", "inputs[0].shape"),
    "no pictures": (changed(set_shape(0, 8, 8, 3)), "SHAPE_INVALID", "inputs[0].shape"),
    "too many": (changed(set_shape(7, 8, 8, 3)), "TOO_MANY_IMAGES", "inputs[0].shape"),
    "too many encoded": (of_files(*[b"x"] * 7), "TOO_MANY_IMAGES", "inputs[0].shape"),
    "overflow": (
        changed(set_shape(1, 2**62, 2**62, 2**62)),
        "SHAPE_MISMATCH",
        "inputs[0].shape",
    ),
    "too few bytes": (changed(set_shape(2, 8, 8, 3)), "SHAPE_MISMATCH", "inputs[0].shape"),
    "another size": (
        request(np.zeros((1, 4, 16, 3), dtype=np.uint8)),
        "SHAPE_MISMATCH",
        "inputs[0]",
    ),
    "both contents": (
        changed(lambda m: m.inputs[0].contents.uint_contents.append(1)),
        "CONTENTS_REPEATED",
        "inputs[0].contents",
    ),
    "raw too many": (
        changed(lambda m: m.raw_input_contents.append(b"")),
        "RAW_CONTENTS_MISMATCH",
        "raw_input_contents",
    ),
    "shared memory": (
        changed(
            lambda m: (
                m.inputs[0]
                .parameters["shared_memory_region"]
                .MergeFrom(pb.InferParameter(string_param="x"))
            )
        ),
        "SHARED_MEMORY_UNSUPPORTED",
        "inputs[0].parameters",
    ),
    "encoded shape": (
        of_files(b"x", b"x", shape=(1, 2)),
        "SHAPE_INVALID",
        "inputs[0].shape",
    ),
    "encoded count": (of_files(b"x", shape=(2,)), "SHAPE_MISMATCH", "inputs[0].shape"),
    "no picture": (of_files(b"not a picture"), "IMAGE_UNSUPPORTED", "inputs[0]"),
    "no bytes": (of_files(b""), "IMAGE_EMPTY", "inputs[0]"),
    "one bad picture": (
        of_files(encoded(plain(RED)[0]), b"x"),
        "IMAGE_UNSUPPORTED",
        "inputs[0]",
    ),
    "picture too large": (of_files(b"x" * 4097), "IMAGE_TOO_LARGE", "inputs[0]"),
    "class ids for others": (request(class_ids=[[1], [2]]), "SHAPE_MISMATCH", "inputs[1]"),
    "class ids flat": (
        changed(lambda m: m.inputs[1].shape.pop(), class_ids=[[1]]),
        "SHAPE_MISMATCH",
        "inputs[1]",
    ),
    "class id": (request(class_ids=[[0, 3]]), "CLASS_ID_OUT_OF_RANGE", "inputs[1]"),
    "rank": (request(class_ids=[[-4]]), "CLASS_ID_OUT_OF_RANGE", "inputs[1]"),
    "too many classes": (request(class_ids=[[0] * 4]), "TOO_MANY_CAM_CLASSES", "inputs[1]"),
    "unknown output": (request(outputs=("logits", "cam.x")), "OUTPUT_NOT_FOUND", "outputs[1]"),
    "output twice": (request(outputs=("logits",) * 2), "OUTPUT_REPEATED", "outputs[1].name"),
    "feature bytes": (
        request(plain(*[RED] * 5), outputs=("features.planes",)),
        "FEATURE_MAPS_TOO_LARGE",
        "outputs",
    ),
    "classification of a map": (
        classification("cam.cam", int64_param=1),
        "CLASSIFICATION_INVALID",
        "outputs[0].parameters[classification]",
    ),
    "classification of none": (
        classification("logits", int64_param=0),
        "CLASSIFICATION_INVALID",
        "outputs[0].parameters[classification]",
    ),
    "classification as text": (
        classification("logits", string_param="3"),
        "PARAMETER_INVALID",
        "outputs[0].parameters[classification]",
    ),
    "timeout": (
        changed(parameter("timeout", int64_param=-1)),
        "TIMEOUT_OUT_OF_RANGE",
        "parameters[timeout]",
    ),
    "priority": (
        changed(parameter("priority", int64_param=-1)),
        "PRIORITY_OUT_OF_RANGE",
        "parameters[priority]",
    ),
    "priority as text": (
        changed(parameter("priority", string_param="1")),
        "PARAMETER_INVALID",
        "parameters[priority]",
    ),
    "timeout as text": (
        changed(parameter("timeout", string_param="1")),
        "PARAMETER_INVALID",
        "parameters[timeout]",
    ),
}


@pytest.mark.parametrize("name", INVALID)
async def test_bad_requests_name_the_field(service: Service, name: str) -> None:
    message, reason, field = INVALID[name]
    status = await service.fails(message)
    assert (status.code, status.reason) == (Code.INVALID_ARGUMENT, reason)
    assert [violation.field for violation in status.field_violations] == [field]
    assert (await service.infer(request()))["logits"].argmax() == 0


async def test_the_bad_picture_is_named(service: Service) -> None:
    status = await service.fails(of_files(encoded(plain(RED)[0]), b"x"))
    assert status.message.startswith("picture 1: ")


async def test_the_configuration_tells_of_instances_priorities_and_sizes(
    tmp_path: Path, write_bundle: Callable[..., Path]
) -> None:
    write_bundle()
    policy = BatchPolicy(
        max_batch=4,
        preferred_sizes=(2, 4),
        max_queue=20,
        priority_queues=(5, 20, 10),
        default_priority=2,
        cores=(ANY_CORE,) * 3,
    )
    service = Service(tmp_path / "repository", policy=policy)
    await service.engine.repository.open()
    config = (await service.handler.model_config(pb.ModelConfigRequest(name="colours"))).config
    assert [group.count for group in config.instance_group] == [3]
    batching = config.dynamic_batching
    assert list(batching.preferred_batch_size) == [2, 4]
    assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
    assert batching.default_queue_policy.max_queue_size == 20
    bounds = {level: rule.max_queue_size for level, rule in batching.priority_queue_policy.items()}
    assert bounds == {1: 5, 2: 20, 3: 10}
    await service.engine.close()


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "none"])
async def test_the_configuration_tells_what_makes_scores_of_logits(
    tmp_path: Path, write_bundle: Callable[..., Path], scores: str
) -> None:
    write_bundle(scores=scores)
    service = Service(tmp_path / "repository")
    await service.engine.repository.open()
    config = (await service.handler.model_config(pb.ModelConfigRequest(name="colours"))).config
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "scores": scores
    }
    await service.engine.close()


async def test_with_an_objective_the_configuration_tells_what_was_found(
    tmp_path: Path, write_bundle: Callable[..., Path]
) -> None:
    write_bundle()
    policy = BatchPolicy(max_batch=4, max_queue=200, lanes=1, objective=5e-5)
    service = Service(tmp_path / "repository", policy=policy)
    await service.engine.repository.open()
    for _ in range(40):
        await service.infer(request())
    config = (await service.handler.model_config(pb.ModelConfigRequest(name="colours"))).config
    # No run fits twice into 50 microseconds: one picture a batch, and next to no queue.
    assert config.max_batch_size == 4
    assert list(config.dynamic_batching.preferred_batch_size) == [1]
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 1
    await service.engine.close()


async def test_the_timeout_is_obeyed(
    gated, tmp_path: Path, write_bundle: Callable[..., Path]
) -> None:
    write_bundle()
    service = Service(tmp_path / "repository", lambda bundle: gated)
    await service.engine.repository.open()
    await service.infer(changed(parameter("timeout", int64_param=0)))
    gated.gate.clear()
    status = await service.fails(changed(parameter("timeout", uint64_param=20_000)))
    assert status.code == Code.DEADLINE_EXCEEDED
    gated.gate.set()
    bad = request(np.stack([plain(RED)[0], plain((13, 13, 13))[0]]))
    status = await service.fails(bad)
    assert (status.code, status.reason) == (Code.INTERNAL, "ENGINE_FAILED")
    found = service.statistics.of("colours", "1")
    assert (found.success.count, found.failure.count) == (1, 2)
    assert found.failure.seconds >= 0.02
    await service.engine.close()


async def test_models_that_do_not_serve(service: Service) -> None:
    message = request()
    message.model_name = "x"
    assert (await service.fails(message)).code == Code.NOT_FOUND
    message = request(model_version="2")
    assert (await service.fails(message)).code == Code.NOT_FOUND
    with pytest.raises(ServeError) as raised:
        await service.handler.model_ready(pb.ModelReadyRequest(name="x"))
    assert status_of(raised.value).code == Code.NOT_FOUND
    await service.engine.repository.unload("colours", "")
    assert (await service.fails(request())).code == Code.FAILED_PRECONDITION
    ready = await service.handler.model_ready(pb.ModelReadyRequest(name="colours"))
    assert not ready.ready
    index = await service.handler.repository_index(pb.RepositoryIndexRequest())
    assert [(m.name, m.version, m.state, m.reason) for m in index.models] == [
        ("colours", "1", "UNAVAILABLE", "unloaded")
    ]
    index = await service.handler.repository_index(pb.RepositoryIndexRequest(ready=True))
    assert not index.models


async def test_a_loading_model_is_unavailable(
    tmp_path: Path, write_bundle: Callable[..., Path]
) -> None:
    write_bundle()
    service = Service(tmp_path / "repository")
    opening = asyncio.create_task(service.engine.repository.open())
    await asyncio.sleep(0)
    assert (await service.fails(request())).code == Code.UNAVAILABLE
    await opening
    assert await service.infer(request())
    await service.engine.close()


async def test_readiness_is_that_of_the_server(service: Service) -> None:
    assert (await service.handler.server_live(pb.ServerLiveRequest())).live
    assert (await service.handler.server_ready(pb.ServerReadyRequest())).ready
    service.ready = False
    assert not (await service.handler.server_ready(pb.ServerReadyRequest())).ready


async def test_statistics_are_those_of_what_ran(service: Service) -> None:
    await service.infer(request(plain(RED, GREEN)))
    await service.infer(of_files(encoded(plain(RED)[0])))
    await service.fails(of_files(b"x"))
    answer = await service.handler.model_statistics(pb.ModelStatisticsRequest(name="colours"))
    (found,) = answer.model_stats
    assert (found.name, found.version) == ("colours", "1")
    assert (found.inference_count, found.execution_count) == (3, 2)
    stats = found.inference_stats
    stages = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert [stage.count for stage in (stats.success, *stages)] == [2] * 5
    assert all(stage.ns > 0 for stage in stages)
    assert stats.success.ns >= stats.compute_input.ns + stats.compute_infer.ns
    assert stats.fail.count == 1
    assert stats.fail.ns > 0
    assert [(b.batch_size, b.compute_infer.count) for b in found.batch_stats] == [(1, 1), (2, 1)]
    for batch in found.batch_stats:
        assert batch.compute_input.count == batch.compute_output.count == 1
        assert min(batch.compute_input.ns, batch.compute_output.ns) > 0
    runs = sum(batch.compute_infer.ns for batch in found.batch_stats)
    assert abs(runs - stats.compute_infer.ns) <= 2
    every = await service.handler.model_statistics(pb.ModelStatisticsRequest())
    assert every == answer


async def test_loading_takes_what_the_client_sends_and_no_more(
    tmp_path: Path, write_bundle: Callable[..., Path]
) -> None:
    write_bundle()
    service = Service(tmp_path / "repository", admin=True)
    await service.engine.repository.open()
    unload = pb.RepositoryModelUnloadRequest(model_name="colours")
    unload.parameters["unload_dependents"].bool_param = False
    await service.handler.repository_model_unload(unload)
    write_bundle(version=2)
    await service.handler.repository_model_load(pb.RepositoryModelLoadRequest(model_name="colours"))
    assert (await service.handler.model_infer(request(), None)).model_version == "2"
    override = pb.RepositoryModelLoadRequest(model_name="colours")
    override.parameters["config"].string_param = "{}"
    for call in (
        service.handler.repository_model_load(override),
        service.handler.repository_model_load(
            pb.RepositoryModelLoadRequest(model_name="colours", repository_name="x")
        ),
    ):
        with pytest.raises(ServeError) as raised:
            await call
        assert status_of(raised.value).code == Code.INVALID_ARGUMENT
    await service.engine.close()


async def test_a_stream_answers_in_order_and_outlives_errors(service: Service) -> None:
    colours = [RED, GREEN, BLUE, RED, GREEN, BLUE, RED, GREEN]

    async def messages() -> AsyncIterator[pb.ModelInferRequest]:
        for index, colour in enumerate(colours):
            yield of_files(b"x") if index == 3 else request(plain(colour), id=str(index))

    answers = [answer async for answer in service.handler.model_stream_infer(messages(), None)]
    assert [answer.infer_response.id for answer in answers[:3]] == ["0", "1", "2"]
    assert answers[3].error_message.startswith("INVALID_ARGUMENT: the bytes are no picture")
    assert not answers[3].infer_response.outputs
    best = [
        arrays(answer.infer_response)["logits"].argmax()
        for index, answer in enumerate(answers)
        if index != 3
    ]
    assert best == [0, 1, 2, 1, 2, 0, 1]


async def test_a_benchmark_can_ask_for_everything_that_is_described(service: Service) -> None:
    """perf_analyzer reads names, types and shapes from the metadata, and wants every output."""
    described = await service.handler.model_metadata(pb.ModelMetadataRequest(name="colours"))
    config = (await service.handler.model_config(pb.ModelConfigRequest(name="colours"))).config
    assert (config.name, config.max_batch_size, config.backend) == ("colours", 4, "onnxruntime")
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.dynamic_batching.max_queue_delay_microseconds == 50_000
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert config.dynamic_batching.priority_levels == 0
    assert [group.count for group in config.instance_group] == [1]
    for tensors, configured in (
        (described.inputs, config.input),
        (described.outputs, config.output),
    ):
        assert [t.name for t in tensors] == [c.name for c in configured]
        for tensor, entry in zip(tensors, configured, strict=True):
            assert tensor.shape[0] == -1
            assert list(tensor.shape[1:]) == list(entry.dims)
            assert pb.DataType.Name(entry.data_type) == f"TYPE_{tensor.datatype}"
    required = [entry.name for entry in config.input if not entry.optional]
    assert required == ["image"]
    pixels = plain(*[RED] * config.max_batch_size)
    outputs = tuple(output.name for output in described.outputs)
    found = await service.infer(request(pixels, outputs=outputs))
    for output in described.outputs:
        assert found[output.name].shape[0] == config.max_batch_size
        for have, want in zip(found[output.name].shape[1:], output.shape[1:], strict=True):
            assert want in (-1, have)


NAMES = st.sampled_from(["image", "class_ids", "logits", "cam.cam", "features.planes", "", "\0"])
NUMBERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 8, 192, 2**31, 2**63 - 1])
PARAMETERS = st.dictionaries(
    st.sampled_from(["timeout", "priority", "classification", "shared_memory_region", "x"]),
    st.one_of(
        NUMBERS.map(lambda value: pb.InferParameter(int64_param=value)),
        st.booleans().map(lambda value: pb.InferParameter(bool_param=value)),
        st.text(max_size=4).map(lambda value: pb.InferParameter(string_param=value)),
        st.just(pb.InferParameter()),
    ),
    max_size=2,
)
RAWS = st.one_of(
    st.binary(max_size=40),
    st.just(plain(RED).tobytes()),
    st.just(write_bytes([encoded(plain(RED)[0])])),
    st.just(np.array([0, -1], dtype="<i8").tobytes()),
)
CONTENTS = st.one_of(
    st.none(),
    st.lists(st.integers(0, 300), max_size=4).map(
        lambda values: pb.InferTensorContents(uint_contents=values)
    ),
    st.lists(NUMBERS, max_size=4).map(lambda values: pb.InferTensorContents(int64_contents=values)),
    st.lists(st.binary(max_size=4), max_size=3).map(
        lambda values: pb.InferTensorContents(bytes_contents=values)
    ),
)
INPUTS = st.builds(
    lambda name, datatype, shape, parameters, contents: pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=shape, parameters=parameters, contents=contents
    ),
    NAMES,
    st.sampled_from(["UINT8", "INT64", "BYTES", "FP32", ""]),
    st.one_of(st.lists(NUMBERS, max_size=5), st.sampled_from([[1, 8, 8, 3], [1], [1, 2], [1, 1]])),
    PARAMETERS,
    CONTENTS,
)
OUTPUTS = st.builds(
    lambda name, parameters: pb.ModelInferRequest.InferRequestedOutputTensor(
        name=name, parameters=parameters
    ),
    NAMES,
    PARAMETERS,
)
MESSAGES = st.builds(
    lambda model, version, inputs, outputs, raws, parameters: pb.ModelInferRequest(
        model_name=model,
        model_version=version,
        inputs=inputs,
        outputs=outputs,
        raw_input_contents=raws,
        parameters=parameters,
    ),
    st.sampled_from(["colours", "colours", "colours", "", "x"]),
    st.sampled_from(["", "", "1", "0", "-1", "9" * 30]),
    st.lists(INPUTS, max_size=3),
    st.lists(OUTPUTS, max_size=2),
    st.lists(RAWS, max_size=3),
    PARAMETERS,
)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(message=MESSAGES)
def test_no_request_is_the_servers_fault(
    fuzzed: tuple[Service, asyncio.AbstractEventLoop], message: pb.ModelInferRequest
) -> None:
    service, loop = fuzzed
    code, text = Code.OK, ""
    try:
        loop.run_until_complete(service.handler.model_infer(message, None))
    except ServeError as error:
        code, text = status_of(error).code, error.message
    assert code in (Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED)
    assert len(text) < 500


@pytest.fixture
def fuzzed(tmp_path: Path, write_bundle: Callable[..., Path]):
    write_bundle()
    loop = asyncio.new_event_loop()

    async def begin() -> Service:
        service = Service(tmp_path / "repository")
        await service.engine.repository.open()
        return service

    service = loop.run_until_complete(begin())
    yield service, loop
    found = loop.run_until_complete(service.infer(request()))
    assert found["logits"].argmax() == 0
    loop.run_until_complete(service.engine.close())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


async def test_a_label_is_a_version(service: Service, write_bundle: Callable[..., Path]) -> None:
    write_bundle(version=2)
    repository = service.engine.repository
    await repository.load("colours", "2")
    await repository.set_labels("colours", {"stable": "1", "canary": "2"})
    answers = {
        version: (
            await service.handler.model_infer(request(model_version=version), None)
        ).model_version
        for version in ("", "stable", "canary", "latest", "1")
    }
    assert answers == {"": "1", "stable": "1", "canary": "2", "latest": "2", "1": "1"}
    ready = pb.ModelReadyRequest(name="colours", version="canary")
    assert (await service.handler.model_ready(ready)).ready
    asked = pb.ModelStatisticsRequest(name="colours", version="canary")
    (statistics,) = (await service.handler.model_statistics(asked)).model_stats
    assert (statistics.version, statistics.inference_stats.success.count) == ("2", 2)


async def test_an_unknown_label_is_not_found(service: Service) -> None:
    status = await service.fails(request(model_version="canary"))
    assert (status.code, status.reason) == (Code.NOT_FOUND, "VERSION_NOT_FOUND")
