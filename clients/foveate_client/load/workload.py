"""The requests of a load, of one or several kinds, serialised before the clock starts."""

import io
import random
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from foveate.inference import open_inference_pb2 as oip
from foveate.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from foveate.v1.classifier_service_pb2 import ClassifyRequest, GetModelRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate.v1.explanation_pb2 import CamOptions, FeatureMapOptions
from foveate_client._exceptions import FoveateError
from foveate_client._images import open_upright
from foveate_client.batch.sources import Joined, Passed, Unreadable, open_source

PLAIN = "plain"
CAM = "cam"
FEATURE_MAPS = "feature maps"

_CLASSIFY = "/foveate.v1.ClassifierService/Classify"
_INFER = "/inference.GRPCInferenceService/ModelInfer"


class WorkloadError(FoveateError):
    """There is nothing to send, or the server does not support it."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The share of the requests, from 0 to 1, with maps; the others have none.

    `cam` is that of requests for the best class's activation map, and
    `feature_maps` that of requests for the feature map of `layer`, where an
    empty one means the model's last.
    """

    cam: float = 0.0
    feature_maps: float = 0.0
    layer: str = ""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests of one gRPC method by kind, serialised, and the share of each kind."""

    method: str
    model: str
    requests: Mapping[str, Sequence[bytes]]
    shares: Mapping[str, float]

    def sequence(self, seed: int) -> Iterator[tuple[str, bytes]]:
        """Yield kinds and requests without end: kinds by chance, the pictures of each in turn."""
        # Not for secrets: the same seed must give the same load.
        chance = random.Random(seed)  # noqa: S311
        kinds, shares = list(self.shares), list(self.shares.values())
        turns = dict.fromkeys(kinds, 0)
        while True:
            (kind,) = chance.choices(kinds, shares)
            requests = self.requests[kind]
            yield kind, requests[turns[kind] % len(requests)]
            turns[kind] += 1


def read_pictures(paths: Sequence[Path], passed: Passed) -> list[bytes]:
    """Return the pictures at `paths`, of a folder every one in it.

    Files that cannot be read, or are no pictures, are counted in `passed`. Raises
    WorkloadError where no picture is left.
    """
    sources = [open_source(str(path), ordered=True, passed=passed) for path in paths]
    pictures = []
    for found in Joined(sources).items():
        if isinstance(found, Unreadable):
            passed.note("that cannot be read", found.name)
            continue
        try:
            data = found.image if isinstance(found.image, bytes) else found.image.read_bytes()
            with Image.open(io.BytesIO(data)):
                pictures.append(data)
        except UnidentifiedImageError:
            passed.note("that are no pictures", found.name)
        except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError):
            passed.note("that cannot be read", found.name)
    if not pictures:
        over = f"; passed over: {passed}" if passed.counts else ""
        raise WorkloadError(f"there are no pictures in {', '.join(map(str, paths))}{over}")
    return pictures


async def foveate_workload(
    channel: grpc.aio.Channel,
    pictures: Sequence[bytes],
    mix: Mix,
    *,
    model: str,
    version: str = "",
    timeout: float,  # noqa: ASYNC109 - a gRPC deadline
) -> Workload:
    """Return the requests of foveate.v1, for encoded `pictures`.

    They name the `version` that is given, and else none, so that the server's default
    one answers, as it changes. Each kind is sent once beforehand, so that a refusal is
    reported before the load. Raises WorkloadError where the model has no such layer, and
    grpc.aio.AioRpcError.
    """
    stub = ClassifierServiceStub(channel)
    details = (
        await stub.GetModel(GetModelRequest(name=model, version=version), timeout=timeout)
    ).model
    shares = {PLAIN: 1 - mix.cam - mix.feature_maps, CAM: mix.cam, FEATURE_MAPS: mix.feature_maps}
    shares = {kind: share for kind, share in shares.items() if share > 0}
    requests = {}
    for kind in shares:
        messages = [
            ClassifyRequest(model=details.name, version=version, encoded=picture)
            for picture in pictures
        ]
        for message in messages:
            if kind == CAM:
                message.cam.CopyFrom(CamOptions(top=1))
            elif kind == FEATURE_MAPS:
                layer = _layer([x.name for x in details.layers], mix.layer)
                message.feature_maps.append(FeatureMapOptions(layer=layer))
        answer = await stub.Classify(messages[0], timeout=timeout)
        if not answer.predictions:
            raise WorkloadError(f"the server's answer to a {kind} request holds no prediction")
        requests[kind] = [message.SerializeToString() for message in messages]
    return Workload(method=_CLASSIFY, model=details.name, requests=requests, shares=shares)


async def oip_workload(
    channel: grpc.aio.Channel,
    pictures: Sequence[bytes],
    *,
    model: str,
    output: str,
    timeout: float,  # noqa: ASYNC109 - a gRPC deadline
) -> Workload:
    """Return the requests of the Open Inference Protocol, for encoded `pictures`.

    What the model's first input takes decides what is sent: BYTES takes the
    files, UINT8 and FP32 take pixels of its shape, [height, width, channels] or
    [channels, height, width], with or without a batch. Asked for is the tensor
    `output`, or the model's first one where that is empty. One request is sent
    beforehand, so that a refusal is reported before the load. Raises
    WorkloadError where the input is of another kind, and grpc.aio.AioRpcError.
    """
    stub = GRPCInferenceServiceStub(channel)
    metadata = await stub.ModelMetadata(oip.ModelMetadataRequest(name=model), timeout=timeout)
    if not metadata.inputs or not metadata.outputs:
        raise WorkloadError(f"the server describes no inputs or no outputs of {model}")
    wanted, outputs = metadata.inputs[0], [tensor.name for tensor in metadata.outputs]
    if output and output not in outputs:
        raise WorkloadError(f"{model} has no output {output!r}; it has {', '.join(outputs)}")
    messages = [
        oip.ModelInferRequest(
            model_name=model,
            inputs=[
                oip.ModelInferRequest.InferInputTensor(
                    name=wanted.name, datatype=wanted.datatype, shape=shape
                )
            ],
            outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name=output or outputs[0])],
            raw_input_contents=[content],
        )
        for shape, content in (_tensor(picture, wanted) for picture in pictures)
    ]
    answer = await stub.ModelInfer(messages[0], timeout=timeout)
    if not answer.outputs:
        raise WorkloadError("the server's answer holds no output")
    requests = {PLAIN: [message.SerializeToString() for message in messages]}
    return Workload(method=_INFER, model=model, requests=requests, shares={PLAIN: 1.0})


def _layer(layers: Sequence[str], wanted: str) -> str:
    if not layers:
        raise WorkloadError("the model has no layer whose feature map can be asked for")
    if wanted and wanted not in layers:
        raise WorkloadError(f"the model has no layer {wanted!r}; it has {', '.join(layers)}")
    return wanted or layers[-1]


def _tensor(
    picture: bytes, wanted: oip.ModelMetadataResponse.TensorMetadata
) -> tuple[list[int], bytes]:
    """Return the shape and the plain bytes of a picture as the input `wanted`."""
    # A batch, and the number of strings, are of any size: here of one.
    if wanted.datatype == "BYTES":
        shape = [1 if size < 0 else size for size in wanted.shape]
        return shape, struct.pack("<I", len(picture)) + picture
    kind = {"UINT8": np.uint8, "FP32": np.float32}.get(wanted.datatype)
    sizes = list(wanted.shape[-3:])
    channels_last = sizes[-1:] in ([1], [3])
    channels_first = sizes[:1] in ([1], [3])
    if kind is None or len(sizes) != 3 or not (channels_last or channels_first):
        raise WorkloadError(
            f"the input {wanted.name!r} is {wanted.datatype} {list(wanted.shape)}; "
            "pictures can be sent as BYTES, or as UINT8 or FP32 with 1 or 3 channels"
        )
    height, width, channels = sizes if channels_last else (*sizes[1:], sizes[0])
    if height < 1 or width < 1:
        raise WorkloadError(f"the input {wanted.name!r} states no height and width")
    fitted = ImageOps.fit(
        open_upright(picture), (width, height), method=Image.Resampling.BICUBIC
    ).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(fitted).reshape(height, width, channels)
    if not channels_last:
        pixels = pixels.transpose(2, 0, 1)
    if kind is np.float32:
        pixels = pixels / np.float32(255)
    shape = [1] * (len(wanted.shape) - 3) + list(pixels.shape)
    return shape, pixels.astype(kind).tobytes()
