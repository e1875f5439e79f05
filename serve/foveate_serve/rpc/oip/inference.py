"""Converts a ModelInferRequest to the engine's request, and its result to a ModelInferResponse."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from foveate.inference.open_inference_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
)
from foveate_runtime.bundle.manifest import CLASS_IDS_INPUT, IMAGE_INPUT, LOGITS_OUTPUT
from foveate_serve.classification import TrustRequest
from foveate_serve.engine.graph import GraphRequest, GraphResult
from foveate_serve.errors import InvalidRequestError, clip, quote
from foveate_serve.rpc.oip import tensors
from foveate_serve.rpc.oip.tensors import BYTES, DATATYPES, InputTensor
from foveate_serve.rpc.priority import priority_of

_PIXELS = np.dtype(np.uint8)
_CLASS_IDS = np.dtype(np.int64)
_MAX_TIMEOUT = timedelta(days=1) // timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class WantedOutput:
    """An output to return: the tensor, or its `classes` best elements as texts."""

    name: str
    classes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Inference:
    """A parsed request: the engine's request, the outputs to return, and the timeout.

    `fields` maps the engine's names of fields to their paths in the message.
    """

    request: GraphRequest
    outputs: tuple[WantedOutput, ...]
    timeout: timedelta | None
    fields: Mapping[str, str]

    def locate(self, error: InvalidRequestError) -> InvalidRequestError:
        """Return an error of the engine with the path of its field in the message."""
        name, *_ = re.split(r"[.[]", error.field)
        return error.at(self.fields.get(name, error.field))


def read_request(message: ModelInferRequest, *, max_images: int) -> Inference:
    """Read a request of at most `max_images` pictures; raises InvalidRequestError."""
    outputs = _outputs(message)
    timeout = _timeout(message.parameters)
    inputs = tensors.inputs_by_name(message)
    image, class_ids = inputs.pop(IMAGE_INPUT, None), inputs.pop(CLASS_IDS_INPUT, None)
    for name, tensor in inputs.items():
        raise InvalidRequestError(
            "INPUT_NOT_FOUND",
            f"no input {quote(name)}; there are {IMAGE_INPUT}, {CLASS_IDS_INPUT}",
            field=f"{tensor.field}.name",
            metadata={"input": clip(name)},
        )
    if image is None:
        raise InvalidRequestError(
            "IMAGE_MISSING", f"the request has no input {IMAGE_INPUT!r}", field="inputs"
        )
    return Inference(
        request=GraphRequest(
            images=_images(image, max_images),
            outputs=[output.name for output in outputs],
            class_ids=None if class_ids is None else tensors.read_numbers(class_ids, _CLASS_IDS),
            trust=_trust(message.parameters),
            model=message.model_name,
            version=message.model_version,
            priority=priority_of(
                _integer(message.parameters, "priority", "") or 0, field="parameters[priority]"
            ),
        ),
        outputs=outputs,
        timeout=timeout,
        fields={
            "model": "model_name",
            "images": image.field,
            "trust": "parameters[coverage]",
            "class_ids": "inputs" if class_ids is None else class_ids.field,
        },
    )


def write_response(inference: Inference, result: GraphResult, *, name: str) -> ModelInferResponse:
    """Write the response to the request with the id `name`."""
    response = ModelInferResponse(model_name=result.model, model_version=result.version, id=name)
    for wanted in inference.outputs:
        values = result.outputs[wanted.name]
        if wanted.classes is None:
            datatype, shape = DATATYPES[values.dtype], values.shape
            raw = tensors.write_numbers(values)
        else:
            best = [_best(row, wanted.classes, result.labels) for row in values]
            datatype, shape = BYTES, (len(best), len(best[0]))
            raw = tensors.write_bytes(text for row in best for text in row)
        response.outputs.add(name=wanted.name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(raw)
    return response


def _images(tensor: InputTensor, max_images: int) -> list[bytes] | NDArray[np.uint8]:
    tensors.require_datatype(tensor, DATATYPES[_PIXELS], BYTES)
    shape = tensor.shape
    dimensions = (1, 2) if tensor.datatype == BYTES else (4,)
    if len(shape) not in dimensions or (len(shape) == 2 and shape[1] != 1):
        form = "[N] or [N, 1]" if tensor.datatype == BYTES else "[N, height, width, channels]"
        raise InvalidRequestError(
            "SHAPE_INVALID",
            f"{tensor.field} has the shape {list(shape)}; "
            f"of the type {tensor.datatype} it must be {form}",
            field=f"{tensor.field}.shape",
            metadata={"limit": form},
        )
    if not 1 <= shape[0] <= max_images:
        raise InvalidRequestError(
            "TOO_MANY_IMAGES" if shape[0] > 0 else "SHAPE_INVALID",
            f"{shape[0]} pictures in a request; the limit is 1 to {max_images}",
            field=f"{tensor.field}.shape",
            metadata={"minimum": 1, "limit": max_images},
        )
    if tensor.datatype == BYTES:
        return tensors.read_bytes(tensor)
    return tensors.read_numbers(tensor, _PIXELS)


def _outputs(message: ModelInferRequest) -> tuple[WantedOutput, ...]:
    outputs: dict[str, WantedOutput] = {}
    for index, output in enumerate(message.outputs):
        field = f"outputs[{index}]"
        if output.name in outputs:
            raise InvalidRequestError(
                "OUTPUT_REPEATED",
                f"the output {quote(output.name)} is asked for twice",
                field=f"{field}.name",
                metadata={"output": clip(output.name)},
            )
        tensors.refuse_shared_memory(output.parameters, field)
        outputs[output.name] = WantedOutput(
            name=output.name, classes=_classification(output, field)
        )
    # The protocol's words are "all". Maps and features are megabytes that cost
    # time to compute, so what is not asked for by name is not sent.
    return tuple(outputs.values()) or (WantedOutput(name=LOGITS_OUTPUT),)


def _classification(output: ModelInferRequest.InferRequestedOutputTensor, field: str) -> int | None:
    classes = _integer(output.parameters, "classification", field)
    if classes is None:
        return None
    if output.name != LOGITS_OUTPUT or classes < 1:
        raise InvalidRequestError(
            "CLASSIFICATION_INVALID",
            f"classification is {classes} for the output {quote(output.name)}; "
            f"the limit is 1 or more, for {LOGITS_OUTPUT} alone",
            field=f"{field}.parameters[classification]",
            metadata={"minimum": 1},
        )
    return classes


def _timeout(parameters: Mapping[str, InferParameter]) -> timedelta | None:
    """Return the request's timeout; the parameter is in microseconds, 0 for none."""
    microseconds = _integer(parameters, "timeout", "")
    if not microseconds:
        return None
    if not 0 < microseconds <= _MAX_TIMEOUT:
        raise InvalidRequestError(
            "TIMEOUT_OUT_OF_RANGE",
            f"timeout is {microseconds} microseconds; the limit is 0 to {_MAX_TIMEOUT}",
            field="parameters[timeout]",
            metadata={"minimum": 0, "limit": _MAX_TIMEOUT},
        )
    return timedelta(microseconds=microseconds)


def _trust(parameters: Mapping[str, InferParameter]) -> TrustRequest | None:
    """Return which prediction sets the request means; None where it does not say."""
    if "coverage" not in parameters:
        return None
    parameter = parameters["coverage"]
    if parameter.WhichOneof("parameter_choice") != "double_param":
        raise InvalidRequestError(
            "PARAMETER_INVALID",
            f"the parameter coverage is given as {parameter.WhichOneof('parameter_choice')}; "
            "it must be double_param",
            field="parameters[coverage]",
            metadata={"parameter": "coverage"},
        )
    return TrustRequest(coverage=parameter.double_param)


def _integer(parameters: Mapping[str, InferParameter], name: str, owner: str) -> int | None:
    if name not in parameters:
        return None
    parameter = parameters[name]
    match parameter.WhichOneof("parameter_choice"):
        case "int64_param":
            return parameter.int64_param
        case "uint64_param":
            return parameter.uint64_param
        case kind:
            raise InvalidRequestError(
                "PARAMETER_INVALID",
                f"the parameter {name} is given as {kind or 'nothing'}; "
                "it must be int64_param or uint64_param",
                field=f"{owner}.parameters[{name}]".removeprefix("."),
                metadata={"parameter": name},
            )


def _best(logits: NDArray[np.float32], classes: int, labels: Sequence[str]) -> list[bytes]:
    """Return the best classes as "score:index:label", the score being the element itself."""
    # Stable, so that equal logits rank as in the graph: the lower class first.
    ranking = np.argsort(-logits, kind="stable")[:classes].tolist()
    return [f"{logits[index]:f}:{index}:{labels[index]}".encode() for index in ranking]
