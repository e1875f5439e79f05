import subprocess
import sys
import types
from importlib import resources

import pytest

import foveate_client


def test_the_namespace_is_complete_and_sorted():
    public = [
        name
        for name, value in vars(foveate_client).items()
        if not name.startswith("_")
        and name not in {"Any", "TYPE_CHECKING"}
        and not isinstance(value, types.ModuleType)
    ]
    # Those of gRPC come when they are asked for.
    assert sorted({*public, "AsyncGrpcTransport", "GrpcTransport"}) == foveate_client.__all__


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        foveate_client.Cleint  # noqa: B018


def test_every_public_name_is_documented():
    undocumented = [
        name
        for name in foveate_client.__all__
        if name != "ImageInput" and not getattr(foveate_client, name).__doc__
    ]
    assert undocumented == []


def test_the_types_are_published():
    assert resources.files(foveate_client).joinpath("py.typed").is_file()


IMPORT_SECONDS = 0.4


def in_a_fresh_process(program: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.splitlines()


def test_importing_the_client_imports_no_engine_and_is_quick():
    program = (
        "import sys, time; start = time.process_time(); import foveate_client; "
        "print(time.process_time() - start); print(*sys.modules)"
    )
    seconds, modules = in_a_fresh_process(program)
    heavy = {"torch", "onnxruntime", "pydantic", "onnx", "foveate_serve", "foveate_train", "rich"}
    late = {"grpc", "numpy", "PIL", "opentelemetry"}
    assert (heavy | late).isdisjoint(modules.split())
    assert float(seconds) < IMPORT_SECONDS


def test_predictions_of_a_file_need_neither_numpy_nor_pillow(server, coffee):
    program = (
        "import sys; from foveate_client import Client\n"
        f"with Client({server.address!r}) as client:\n"
        f"    print(client.classify({str(coffee)!r}).predictions[0].label)\n"
        "print(*sys.modules)"
    )
    label, modules = in_a_fresh_process(program)
    assert label == "tiger cat"
    assert {"numpy", "PIL"}.isdisjoint(modules.split())
