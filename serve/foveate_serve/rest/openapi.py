"""The OpenAPI description of the routes."""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from foveate_serve.rest.classify import PARAMETERS, PICTURES
from foveate_serve.rest.documents import IndexDocument, InferDocument, RepositoryDocument
from foveate_serve.rest.pictures import IMAGE_FIELD
from foveate_serve.rest.routes import Operation

_DOCUMENTS = (InferDocument, IndexDocument, RepositoryDocument)
_BINARY = {"type": "string", "format": "binary"}
_NUMBER = {"type": "number"}
_INTEGER = {"type": "integer"}
_TEXT = {"type": "string"}
_SCORE = {"type": ["number", "null"]}

_ERROR = {
    "type": "object",
    "required": ["error", "code", "reason"],
    "properties": {
        "error": {"type": "string", "description": "a sentence for a person"},
        "code": {"type": "string", "description": "the canonical code, as in gRPC"},
        "reason": {"type": "string", "description": "in upper snake case"},
        "field": {"type": "string", "description": "the part of the request that is at fault"},
        "metadata": {"type": "object", "additionalProperties": _TEXT},
    },
}


def _object(optional: Mapping[str, Any] | None = None, **required: Any) -> dict[str, Any]:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_CLASSIFICATION = {
    **_object(
        model=_TEXT,
        version=_TEXT,
        scores=_TEXT,
        predictions=_array(
            _object(class_id=_INTEGER, label=_TEXT, score=_NUMBER, confidence=_SCORE)
        ),
        trust={
            "type": ["object", "null"],
            "properties": {
                "coverage": _NUMBER,
                "prediction_set": _array(_INTEGER),
                "ood_percentile": _NUMBER,
                "abstained": {"type": "boolean"},
            },
        },
        cams=_array(
            _object(
                {"check": _object(drop=_NUMBER, random_drop=_NUMBER, copies=_INTEGER)},
                class_id=_INTEGER,
                label=_TEXT,
                against={"type": ["integer", "null"]},
                method=_TEXT,
                height=_INTEGER,
                width=_INTEGER,
                minimum=_NUMBER,
                maximum=_NUMBER,
                explained=_SCORE,
            )
        ),
    )
}

_INFERENCE = _object(
    model_name=_TEXT,
    model_version=_TEXT,
    outputs=_array(
        {
            "type": "object",
            "required": ["name", "datatype", "shape"],
            "properties": {
                "name": _TEXT,
                "datatype": _TEXT,
                "shape": _array(_INTEGER),
                "parameters": {"type": "object"},
                "data": {"type": "array"},
            },
        }
    ),
)

_ANSWERS: dict[str, dict[str, Any]] = {
    "none": {},
    "object": {"application/json": {"schema": {"type": "object"}}},
    "list": {"application/json": {"schema": _array({"type": "object"})}},
    "infer": {
        "application/json": {"schema": _INFERENCE},
        "application/octet-stream": {"schema": _BINARY},
    },
    "classify": {
        "application/json": {"schema": _CLASSIFICATION},
        **{kind: {"schema": _BINARY} for kind in PICTURES},
    },
}


def describe(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the description of some operations (OpenAPI 3.1)."""
    _, schemas = models_json_schema(
        [(document, "validation") for document in _DOCUMENTS],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Foveate",
            "version": version("foveate-serve"),
            "description": "Image classifiers that show where they looked.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _identifier(operation),
        "parameters": _parameters(operation),
        "responses": {
            "200": {"description": "Done", **_content(_ANSWERS[operation.answer])},
            "default": {
                "description": "The request failed",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if operation.answer == "none":
        described["responses"]["400"] = {"description": "No"}
    if operation.document:
        described["requestBody"] = {
            "required": operation.answer in {"infer", "classify"},
            "content": _body(operation.document),
        }
    return described


def _content(answers: dict[str, Any]) -> dict[str, Any]:
    return {"content": answers} if answers else {}


def _identifier(operation: Operation) -> str:
    return re.sub(r"[^a-z0-9]+", "_", f"{operation.method} {operation.path}".lower()).strip("_")


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"\{(\w+)\}", operation.path)
    found = [
        {"name": name, "in": "path", "required": True, "schema": {**_TEXT, "minLength": 1}}
        for name in names
    ]
    if operation.answer == "classify":
        found += [
            {"name": name, "in": "query", "description": text, "schema": {"type": kind}}
            for name, (kind, text) in PARAMETERS.items()
        ]
    return found


def _body(document: str) -> dict[str, Any]:
    if document != "picture":
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{document}"}}}
    return {
        "image/*": {"schema": _BINARY},
        "multipart/form-data": {"schema": _object(**{IMAGE_FIELD: _BINARY})},
    }
