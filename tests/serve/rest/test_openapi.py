"""The description: every route is in it, and what is answered is as it says."""

import pytest

from foveate_serve.rest.routes import CLASSIFY, OPEN_INFERENCE
from foveate_serve.rpc.security import permission_of


@pytest.fixture
async def description(client) -> dict:
    answer = await client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def test_every_route_is_described_once(description: dict) -> None:
    described = {
        (method.upper(), path)
        for path, operations in description["paths"].items()
        for method in operations
    }
    operations = (*OPEN_INFERENCE, *CLASSIFY)
    assert described == {(operation.method, operation.path) for operation in operations}
    assert len(described) == len(operations)
    names = [
        operation["operationId"]
        for operations in description["paths"].values()
        for operation in operations.values()
    ]
    assert len(set(names)) == len(names)


def test_no_route_needs_more_than_its_method_of_grpc_says() -> None:
    kinds = {operation.path: permission_of(operation.rpc) for operation in OPEN_INFERENCE}
    assert kinds["/v2/health/live"] is None
    assert kinds["/v2/models/{model}/ready"] is None
    assert kinds["/v2/models/{model}/infer"] == "infer"
    assert kinds["/v2/repository/models/{model}/load"] == "admin"


def test_references_lead_somewhere(description: dict) -> None:
    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        if isinstance(value, list):
            return set().union(*map(references, value))
        return set()

    found = references(description)
    assert "#/components/schemas/InferDocument" in found
    names = {reference.removeprefix("#/components/schemas/") for reference in found}
    assert names <= set(description["components"]["schemas"])
