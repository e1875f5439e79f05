import re
import threading
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from PIL import Image

from foveate.status import ErrorStatus, StatusError
from foveate.v1 import classifier_service_pb2 as service
from foveate.v1 import model_pb2 as models
from foveate_client import (
    AsyncClient,
    Cam,
    Client,
    DeadlineExceededError,
    Features,
    InternalError,
    MissingDistributionError,
    ModelVersion,
    NotFoundError,
    Prepared,
    UnavailableError,
    _plugins,
)

from ..waiting import LIMIT_SECONDS

UNAVAILABLE, INTERNAL, NOT_FOUND = 14, 13, 5


def fails(times: int, code: int):
    """Return how to fail with `code` that many times and then to answer."""
    left = iter(range(times))

    def wrap(classify):
        def failing(request):
            if next(left, None) is not None:
                raise StatusError(ErrorStatus(code=code, reason="BUSY", message="not now"))
            return classify(request)

        return failing

    return wrap


def test_a_plain_call_asks_for_nothing_more(server, coffee):
    with Client(server.address) as client:
        result = client.classify(coffee)
    assert server.service.asked == [service.ClassifyRequest(encoded=coffee.read_bytes())]
    assert [p.label for p in result.predictions][:2] == ["tiger cat", "Egyptian cat"]
    assert (result.model, result.version) == ("pets", "3")
    assert (result.cams, result.feature_maps, result.timing) == ((), (), None)
    assert result.view.box == (100, 0, 400, 400)


def test_everything_can_be_asked_for_and_comes_back_typed(server, coffee):
    with Client(server.address) as client:
        result = client.classify(
            coffee,
            model="dogs",
            version="2",
            top_k=3,
            cam=Cam(method="gradcam", class_ids=(4,), top=2),
            feature_maps=["features.3", Features("features.5", channels=(7, 2))],
            timing=True,
        )
    (asked,) = server.service.asked
    assert (asked.model, asked.version, asked.top_k, asked.timing) == ("dogs", "2", 3, True)
    assert len(result.predictions) == 3
    assert result.predictions[0].score == pytest.approx(0.6337, abs=1e-4)
    assert [cam.label for cam in result.cams] == ["tiger cat", "Egyptian cat", "espresso"]
    cam = result.cams[0]
    assert (cam.method, cam.layer, cam.minimum, cam.maximum) == ("gradcam", "features.7", -8, 40)
    assert cam.array.dtype == np.float32
    assert cam.array.tolist() == np.arange(-8, 41).reshape(7, 7).tolist()
    assert not cam.array.flags.writeable
    whole, chosen = result.feature_maps
    assert (whole.layer, whole.channels, whole.array.shape) == ("features.3", (0, 1, 2), (3, 7, 7))
    assert (chosen.channels, chosen.array[:, 6, 6].tolist()) == ((7, 2), [320, 120])
    assert result.timing.infer == timedelta(milliseconds=12)
    assert (result.timing.batch_size, result.timing.backend) == (4, "onnxruntime")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cam": True}, "cam is a Cam, such as Cam(method='gradcam') or Cam(top=3), not True"),
        ({"cam": "gradcam"}, "such as Cam(method='gradcam') or Cam(top=3), not 'gradcam'"),
        ({"cam": Cam}, "cam is a Cam"),
        ({"cam": Cam(class_ids=281)}, "class_ids is a list of classes, such as [281], not 281"),
        ({"feature_maps": "blocks.6"}, "a list of layers, such as ['blocks.6'], not 'blocks.6'"),
        ({"feature_maps": Features("blocks.6")}, "feature_maps is a list of layers"),
        ({"feature_maps": [6]}, "a layer's name or Features('blocks.6'), not 6"),
        ({"model": 3}, "model is a name, such as 'mnist', not 3"),
        ({"version": 1}, "version is a string, such as '1' or 'stable', not 1"),
    ],
)
def test_an_option_of_another_form_is_told_with_the_right_one(server, coffee, options, told):
    with Client(server.address) as client:
        with pytest.raises(TypeError, match=re.escape(told)):
            client.classify(coffee, **options)
        with pytest.raises(TypeError, match=re.escape(told)):
            list(client.classify_many([coffee], **options))


def test_top_k_of_zero_is_sent_for_the_server_to_refuse(server, coffee):
    with Client(server.address) as client:
        client.classify(coffee, top_k=0)
    assert server.service.asked[0].HasField("top_k")


def test_a_prepared_picture_travels_as_plain_bytes(server, coffee):
    with Image.open(coffee) as image:
        pixels = np.asarray(image.resize((224, 224)))
    with Client(server.address) as client:
        client.classify(Prepared(pixels))
    raw = server.service.asked[0].raw
    assert (raw.height, raw.width, raw.channels) == (224, 224, 3)
    assert raw.data == pixels.tobytes()


def test_every_call_has_a_deadline(server, coffee):
    with Client(server.address, timeout=900) as client:
        client.classify(coffee)
        client.classify(coffee, timeout=400)
        client.model("pets")
        client.model("pets", timeout=400)
        list(client.models())
    for left, limit in zip(server.service.time_left, [900, 400, 900, 400, 900], strict=True):
        assert left == pytest.approx(limit, abs=LIMIT_SECONDS)


async def test_every_call_has_a_deadline_under_asyncio(server, coffee):
    async with AsyncClient(server.address, timeout=900) as client:
        await client.classify(coffee, timeout=400)
        await client.model("pets")
        assert [model async for model in client.models()] == []
    for left, limit in zip(server.service.time_left, [400, 900, 900], strict=True):
        assert left == pytest.approx(limit, abs=LIMIT_SECONDS)


def test_a_late_answer_is_not_waited_for(server, coffee):
    released = threading.Event()

    def hang(request):
        released.wait()
        return service.ClassifyResponse()

    server.service.classify = hang
    try:
        with (
            Client(server.address) as client,
            pytest.raises(DeadlineExceededError, match=r"no answer within 0\.2 s"),
        ):
            client.classify(coffee, timeout=0.2)
    finally:
        released.set()


def test_unavailable_is_tried_again(server, coffee):
    server.service.classify = fails(2, UNAVAILABLE)(server.service.classify)
    with Client(server.address) as client:
        result = client.classify(coffee)
    assert result.predictions[0].label == "tiger cat"
    assert len(server.service.asked) == 3


async def test_unavailable_is_tried_again_under_asyncio(server, coffee):
    server.service.classify = fails(2, UNAVAILABLE)(server.service.classify)
    async with AsyncClient(server.address) as client:
        result = await client.classify(coffee)
    assert result.predictions[0].label == "tiger cat"
    assert len(server.service.asked) == 3


def test_other_errors_are_not_tried_again(server, coffee):
    server.service.classify = fails(1, INTERNAL)(server.service.classify)
    with Client(server.address) as client, pytest.raises(InternalError):
        client.classify(coffee)
    assert len(server.service.asked) == 1


def test_a_server_that_is_not_there_is_unavailable(server, coffee):
    server.stop().wait()
    with Client(server.address) as client, pytest.raises(UnavailableError):
        client.classify(coffee)


def test_models_follow_the_pages(server):
    ready = models.ModelVersion(version="3", state=models.MODEL_STATE_READY)
    failed = models.ModelVersion(version="4", state=models.MODEL_STATE_FAILED, reason="digest")
    server.service.pages = {
        "": service.ListModelsResponse(
            models=[models.ModelSummary(name="cats", versions=[ready], default_version="3")],
            next_page_token="2",  # noqa: S106 - a page, not a password
        ),
        "2": service.ListModelsResponse(
            models=[
                models.ModelSummary(name="dogs", versions=[failed, ready], default_version="3")
            ],
        ),
    }
    with Client(server.address) as client:
        cats, dogs = client.models()
    assert (cats.name, cats.default_version) == ("cats", "3")
    assert dogs.versions == (
        ModelVersion(version="4", state="failed", reason="digest"),
        ModelVersion(version="3", state="ready", reason=""),
    )


def test_a_state_from_the_future_is_passed_on(server):
    server.service.pages[""] = service.ListModelsResponse(
        models=[models.ModelSummary(name="cats", versions=[models.ModelVersion(state=77)])]
    )
    with Client(server.address) as client:
        (cats,) = client.models()
    assert cats.versions[0].state == "state 77"


def test_a_model_tells_everything(server):
    with Client(server.address) as client:
        model = client.model("pets", "3")
    assert server.service.asked == [service.GetModelRequest(name="pets", version="3")]
    assert (model.state, model.classifier, model.parameters) == (
        "ready",
        "timm:resnet50",
        25_557_032,
    )
    assert model.labels[1] == "tiger cat"
    assert (model.input.resize, model.input.interpolation) == (256, "bicubic")
    assert model.layers[0].channels == 40
    assert model.cam_methods[0].name == "cam"
    fp32, int8 = model.variants
    assert (fp32.accuracy.top1, fp32.parity.cams) == (0.91, {"cam": 1e-6})
    assert int8.accuracy is None
    assert model.created == datetime(2025, 3, 1, 12, tzinfo=UTC)


async def test_a_model_tells_everything_under_asyncio(server):
    with Client(server.address) as client:
        expected = client.model("pets")
    async with AsyncClient(server.address) as client:
        assert await client.model("pets") == expected


class Recorded:
    """A transport without a network, made as the entry point's is: from a repository."""

    def __init__(self, repository):
        self.repository = repository
        self.closed = False

    def classify(self, request, timeout):
        raise StatusError(ErrorStatus(code=NOT_FOUND, reason="MODEL_UNKNOWN", message="no model"))

    def close(self):
        self.closed = True


def test_any_transport_will_do(tmp_path, coffee):
    transport = Recorded(tmp_path)
    with Client(transport) as client, pytest.raises(NotFoundError, match="no model"):
        client.classify(coffee)
    assert transport.closed


def test_the_local_transport_is_found_by_its_entry_point(tmp_path, coffee, monkeypatch):
    point = EntryPoint(name="local", group="foveate.transports", value="unused:unused")
    monkeypatch.setattr(EntryPoint, "load", lambda self: Recorded)
    monkeypatch.setattr(
        _plugins,
        "entry_points",
        lambda **asked: (
            [point] if asked == {"group": "foveate.transports", "name": "local"} else []
        ),
    )
    with Client.local(tmp_path) as client, pytest.raises(NotFoundError):
        client.classify(coffee)


def test_without_the_server_distribution_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(_plugins, "entry_points", lambda **asked: [])
    with pytest.raises(MissingDistributionError, match=r"pip install 'foveate-serve\[cpu\]'"):
        Client.local(tmp_path)


def test_without_a_part_of_it_the_error_says_so_too(tmp_path, monkeypatch):
    point = EntryPoint(name="local", group="foveate.transports", value="not_there_at_all:Local")
    monkeypatch.setattr(_plugins, "entry_points", lambda **asked: [point])
    with pytest.raises(MissingDistributionError, match="pip install"):
        Client.local(tmp_path)
