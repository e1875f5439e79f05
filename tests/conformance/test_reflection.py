"""A client that knows nothing but gRPC learns the services from the server and uses them."""

import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from skimage import data_dir

from foveate_client import Cam, Client

CHELSEA = Path(data_dir) / "chelsea.png"

# It runs in a process of its own, where no generated code of ours is imported.
PROGRAM = """
import json, sys
from pathlib import Path
import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

address, picture = sys.argv[1:]
with grpc.insecure_channel(address) as channel:
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    service = pool.FindServiceByName("foveate.v1.ClassifierService")

    def method(name):
        described = service.methods_by_name[name]
        path = f"/{service.full_name}/{name}"
        request, response = map(GetMessageClass, (described.input_type, described.output_type))
        kind = channel.stream_stream if described.client_streaming else channel.unary_unary
        call = kind(path, request.SerializeToString, response.FromString)
        return request, call

    ListModels, list_models = method("ListModels")
    Classify, classify = method("Classify")
    Stream, classify_stream = method("ClassifyStream")
    encoded = Path(picture).read_bytes()
    answer = classify(Classify(encoded=encoded, cam={"top": 1}), timeout=30)
    requests = [Stream(request_id=str(k), request={"encoded": encoded}) for k in range(3)]
    print(json.dumps({
        "services": sorted(database.get_services()),
        "models": [model.name for model in list_models(ListModels(), timeout=30).models],
        "labels": [prediction.label for prediction in answer.predictions],
        "values": answer.cams[0].values.hex(),
        "streamed": [
            (x.request_id, x.WhichOneof("result"))
            for x in classify_stream(iter(requests), timeout=30)
        ],
        "ours": [name for name in sys.modules if name.startswith("foveate")],
    }))
"""


def test_a_generic_client_classifies_by_reflection(imagenet_server):
    command = [sys.executable, "-W", "error", "-c", PROGRAM, imagenet_server, CHELSEA]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    with Client(imagenet_server) as client:
        expected = client.classify(CHELSEA, cam=Cam(top=1))
    assert found["ours"] == []
    assert {
        "foveate.v1.ClassifierService",
        "foveate.v1.RepositoryService",
        "grpc.health.v1.Health",
    } <= set(found["services"])
    assert found["models"] == ["efficientnet_lite0"]
    assert found["labels"] == [x.label for x in expected.predictions]
    assert found["values"] == expected.cams[0].array.astype("<f4").tobytes().hex()
    assert found["streamed"] == [[str(k), "response"] for k in range(3)]


def test_a_symbol_is_not_repeated_at_any_length(imagenet_server):
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="x" * (1 << 20))
    with grpc.insecure_channel(imagenet_server) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            next(stub.ServerReflectionInfo(iter([request]), timeout=60))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the limit" in raised.value.details()
