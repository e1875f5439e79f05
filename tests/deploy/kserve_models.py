"""Run in an environment with kserve: compares manifests on stdin with KServe's own models.

The models are made from KServe's schemas. Prints a line for each key that a model does not
have, and for each value of another type.
"""

import json
import re
import sys

import kserve.models
import kubernetes.client.models

PLAIN = {"str": str, "int": int, "float": (int, float), "bool": bool}
MANY = re.compile(r"([Ll]ist|[Dd]ict)[\[(](?:str, )?(.+)[\])]")
"""The two packages write these kinds each in its way."""


def wrong(value, kind, place):
    """Yield what is wrong with a value of which the models say that it is of such a kind."""
    if many := MANY.fullmatch(kind):
        keys = range(len(value)) if many[1].lower() == "list" else list(value)
        for key in keys:
            yield from wrong(value[key], many[2], f"{place}[{key}]")
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (kind != "bool" and isinstance(value, bool)):
            yield f"{place} is {value!r}, which should be {kind}"
    elif model := getattr(kserve.models, kind, getattr(kubernetes.client.models, kind, None)):
        yield from wrong_fields(value, model, place)
    elif kind != "object":
        yield f"{place} is of an unknown kind, {kind}"


def wrong_fields(value, model, place):
    """Yield what is wrong with the fields of a model."""
    names = {theirs: ours for ours, theirs in model.attribute_map.items()}
    for key, each in value.items():
        if key in names:
            yield from wrong(each, model.openapi_types[names[key]], f"{place}.{key}")
        else:
            yield f"{place} has no {key}"
    try:
        model(**{names[key]: each for key, each in value.items() if key in names})
    except ValueError as error:  # a field that must be there
        yield f"{place}: {error}"


for manifest in json.load(sys.stdin):
    version = manifest["apiVersion"].rpartition("/")[2].capitalize()
    for line in wrong(manifest, version + manifest["kind"], manifest["kind"]):
        print(line)
