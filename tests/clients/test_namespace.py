import subprocess
import sys
import types
from importlib import resources

import foveate_client


def test_the_namespace_is_complete_and_sorted():
    public = [
        name
        for name, value in vars(foveate_client).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    ]
    assert sorted(public) == foveate_client.__all__


def test_every_public_name_is_documented():
    undocumented = [
        name
        for name in foveate_client.__all__
        if name != "ImageInput" and not getattr(foveate_client, name).__doc__
    ]
    assert undocumented == []


def test_the_types_are_published():
    assert resources.files(foveate_client).joinpath("py.typed").is_file()


def test_importing_the_client_imports_no_engine(record_property):
    program = (
        "import sys, time; start = time.perf_counter(); import foveate_client; "
        "print(time.perf_counter() - start); print(*sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    seconds, modules = output.splitlines()
    record_property("import_seconds", float(seconds))
    heavy = {"torch", "onnxruntime", "pydantic", "onnx", "foveate_serve", "foveate_train", "rich"}
    assert heavy.isdisjoint(modules.split())
