"""`POST /v1/models/NAME:classify`: a picture as the body; predictions, or the overlay, back."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from foveate.v1.classifier_service_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
    Prediction,
    Trust,
    TrustOptions,
)
from foveate.v1.explanation_pb2 import (
    HEATMAP_FORM_OVERLAY,
    PICTURE_ENCODING_JPEG,
    PICTURE_ENCODING_PNG,
    Cam,
    CamOptions,
    MapCheck,
)
from foveate_serve.errors import InvalidRequestError, clip, listing, quote
from foveate_serve.rest.pictures import picture_of
from foveate_serve.rpc.calls import TimedCall
from foveate_serve.rpc.handlers import ClassifierHandler

T = TypeVar("T")

PARAMETERS: Mapping[str, tuple[str, str]] = {
    "top_k": ("integer", "how many of the best classes to return"),
    "threshold": ("number", "the least score of a class that is returned"),
    "cam": ("string", "true for the model's first map, or the name of a method"),
    "cam_top": ("integer", "how many of the best classes to explain"),
    "classes": ("string", "the ids of classes to explain, with commas between them"),
    "against": ("integer", "the class whose logit is taken off that of each class explained"),
    "check": ("integer", "on how many masked copies of the picture to try the map, 8 to 32"),
    "trust": ("boolean", "whether to say how far the answer can be believed"),
    "coverage": ("number", "the coverage of the prediction set; it implies trust"),
    "timeout": ("number", "seconds within which the answer must be ready"),
}
"""The parameters of the query: the type and the meaning of each."""

PICTURES = {"image/png": PICTURE_ENCODING_PNG, "image/jpeg": PICTURE_ENCODING_JPEG}
"""The encodings of an overlay, by the media type that `Accept` names."""

_FIELDS = {
    "encoded": "body",
    "image": "body",
    "model": "path",
    "version": "path",
    "top_k": "query[top_k]",
    "threshold": "query[threshold]",
    "cam": "query[cam]",
    "cam.method": "query[cam]",
    "cam.top": "query[cam_top]",
    "cam.class_ids": "query[classes]",
    "cam.against": "query[against]",
    "cam.check": "query[check]",
    "trust": "query[trust]",
    "trust.coverage": "query[coverage]",
    "priority": "headers[x-priority]",
}
"""What the fields of the message are in HTTP."""

_EXPLAINING = {"cam", "cam_top", "classes", "against", "check"}
_INT32 = 2**31 - 1
_MAX_SECONDS = 86_400.0


class Classify:
    """Answers the routes of `:classify` with the handler of gRPC."""

    def __init__(self, handler: ClassifierHandler) -> None:
        self._handler = handler

    async def classify(self, request: Request, body: bytes) -> Response:
        """Classify the picture that is the body."""
        query = _Query(request)
        overlay = _overlay_type(request.headers.get("accept", ""))
        message = ClassifyRequest(
            encoded=picture_of(request.headers.get("content-type"), body),
            model=request.path_params["model"],
            version=request.path_params.get("version", ""),
            top_k=query.integer("top_k"),
            threshold=query.number("threshold"),
            cam=_cam_options(query, overlay),
            trust=_trust_options(query),
        )
        try:
            answer = await self._handler.classify(message, TimedCall(_timeout(query)))
        except InvalidRequestError as error:
            field = re.sub(r"\[.*", "", error.field)
            raise error.at(_FIELDS.get(field, error.field)) from error
        if overlay is None:
            return JSONResponse(_record(answer))
        return Response(answer.cams[0].overlay, media_type=overlay)


class _Query:
    """The parameters of a query; raises InvalidRequestError for one that is unknown or bad."""

    def __init__(self, request: Request) -> None:
        self.values: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            if name not in PARAMETERS:
                raise InvalidRequestError(
                    "PARAMETER_UNKNOWN",
                    f"no parameter {quote(name)}; there are {listing(PARAMETERS)}",
                    field=f"query[{clip(name)}]",
                )
            if name in self.values:
                raise _bad(name, "given twice")
            self.values[name] = value

    def integer(self, name: str) -> int | None:
        """Return a whole number of 32 bits, None where it is not given."""
        return self._read(name, _integer, "a whole number")

    def integers(self, name: str) -> list[int]:
        """Return whole numbers, of which there may be none."""
        return (
            self._read(name, lambda text: [_integer(x) for x in text.split(",")], "whole numbers")
            or []
        )

    def number(self, name: str) -> float | None:
        """Return a finite number, None where it is not given."""
        return self._read(name, _number, "a number")

    def flag(self, name: str) -> bool:
        """Return whether a parameter is true."""
        return self._read(name, lambda text: _FLAGS[text.lower()], "true or false") or False

    def _read(self, name: str, read: Callable[[str], T], kind: str) -> T | None:
        if name not in self.values:
            return None
        try:
            return read(self.values[name])
        except (ValueError, KeyError):
            raise _bad(name, f"{quote(self.values[name])}; it must be {kind}") from None


_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_DIGITS = 10


def _integer(text: str) -> int:
    # Python would read underscores and the digits of other scripts as well.
    if not text.removeprefix("-").isascii() or len(text) > _DIGITS + 1 or "_" in text:
        raise ValueError
    value = int(text)
    if abs(value) > _INT32:
        raise ValueError
    return value


def _number(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and text.isascii() and "_" not in text):
        raise ValueError
    return value


def _bad(name: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(
        "PARAMETER_INVALID", f"the parameter {name} is {problem}", field=f"query[{name}]"
    )


def _timeout(query: _Query) -> float | None:
    timeout = query.number("timeout")
    if timeout is not None and not 0 < timeout <= _MAX_SECONDS:
        raise _bad("timeout", f"{timeout:g}; the limit is above 0 to {_MAX_SECONDS:g} seconds")
    return timeout


def _overlay_type(accept: str) -> str | None:
    """Return the media type of the picture that a client prefers to JSON, None where it is JSON."""
    for entry in accept.split(","):
        kind = entry.partition(";")[0].strip().lower()
        if kind in PICTURES:
            return kind
        if kind == "image/*":
            return next(iter(PICTURES))
        if kind in {"application/json", "application/*", "*/*"}:
            return None
    return None


def _cam_options(query: _Query, overlay: str | None) -> CamOptions | None:
    method = query.values.get("cam", "true")
    explains = bool(query.values.keys() & _EXPLAINING) or overlay is not None
    if not explains or _FLAGS.get(method.lower()) is False:
        if overlay is not None:
            raise _bad("cam", "false; the overlay that Accept asks for needs a map")
        if others := query.values.keys() & (_EXPLAINING - {"cam"}):
            raise _bad("cam", f"false; {listing(sorted(others))} would have no effect")
        return None
    options = CamOptions(
        method="" if _FLAGS.get(method.lower()) else method,
        top=query.integer("cam_top"),
        class_ids=query.integers("classes"),
        against=query.integer("against"),
        check=query.integer("check") or 0,
    )
    if overlay is not None:
        best = options.top if options.HasField("top") else int(not options.class_ids)
        if (count := best + len(options.class_ids)) != 1:
            raise _bad(
                "classes" if options.class_ids else "cam_top",
                f"for {count} classes; an overlay, which Accept asks for, is of one",
            )
        options.forms.append(HEATMAP_FORM_OVERLAY)
        options.encoding = PICTURES[overlay]
    return options


def _trust_options(query: _Query) -> TrustOptions | None:
    coverage = query.number("coverage")
    if coverage is not None and query.values.get("trust") and not query.flag("trust"):
        raise _bad("trust", "false; coverage would have no effect")
    return TrustOptions(coverage=coverage) if coverage is not None or query.flag("trust") else None


def _record(answer: ClassifyResponse) -> dict[str, Any]:
    """Return an answer as `foveate classify --json` prints it, without the names of files."""
    return {
        "model": answer.model,
        "version": answer.version,
        "scores": answer.scores,
        "predictions": [_prediction(prediction) for prediction in answer.predictions],
        "trust": _trust(answer.trust) if answer.HasField("trust") else None,
        "cams": [_cam(cam) for cam in answer.cams],
        **({"warnings": list(answer.warnings)} if answer.warnings else {}),
    }


def _prediction(prediction: Prediction) -> dict[str, Any]:
    return {
        "class_id": prediction.class_id,
        "label": prediction.label,
        "score": prediction.score,
        "confidence": prediction.confidence if prediction.HasField("confidence") else None,
    }


def _trust(trust: Trust) -> dict[str, Any]:
    return {
        "coverage": trust.coverage,
        "prediction_set": list(trust.prediction_set),
        "ood_percentile": trust.ood_percentile,
        "abstained": trust.abstained,
    }


def _cam(cam: Cam) -> dict[str, Any]:
    return {
        "class_id": cam.class_id,
        "label": cam.label,
        "against": cam.against if cam.HasField("against") else None,
        "method": cam.method,
        "height": cam.height,
        "width": cam.width,
        "minimum": cam.minimum,
        "maximum": cam.maximum,
        "explained": cam.explained if cam.HasField("explained") else None,
        **({"check": _check(cam.check)} if cam.HasField("check") else {}),
    }


def _check(check: MapCheck) -> dict[str, Any]:
    return {"drop": check.drop, "random_drop": check.random_drop, "copies": check.copies}
