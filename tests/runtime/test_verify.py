"""`foveate verify` as people type it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from foveate_runtime.commands import verify

from ..colours import BIAS, relist


def change_bias(bundle: Path, bias: tuple[float, ...]) -> None:
    """Put another bias into the graph, and its digest into the manifest."""
    model = onnx.load(bundle / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "bias":
            tensor.CopyFrom(numpy_helper.from_array(np.array(bias, dtype=np.float32), "bias"))
    onnx.save(model, bundle / "model.onnx")
    relist(bundle, "model.onnx")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_every_output_of_a_right_bundle_is_accepted(
    golden_bundle: Path, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    assert verify.main([str(golden_bundle), "--backend", backend, "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert [check["output"] for check in checks] == ["logits", "cam.cam", "features.planes"]
    assert all(check["accepted"] for check in checks)
    assert all(0 <= check["error"] < 1e-5 for check in checks)
    assert {(check["variant"], check["backend"]) for check in checks} == {("fp32", backend)}


def test_another_graph_is_refused_with_the_output_and_how_much(
    golden_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    red, green, blue = BIAS
    change_bias(golden_bundle, (red + 0.01, green, blue))
    assert verify.main([str(golden_bundle)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("REFUSED fp32 on onnxruntime: logits differs by 0.0")
    assert lines[0].endswith("(largest), 0.001 is accepted")
    assert [line.split()[0] for line in lines[1:]] == ["ok", "ok"]


def test_an_answer_that_is_no_number_is_null_in_json(
    golden_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_bias(golden_bundle, (float("nan"), 0, 0))
    assert verify.main([str(golden_bundle), "--json"]) == 1
    checks = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (checks[0]["error"], checks[0]["accepted"]) == (None, False)


def test_a_changed_file_is_found_first(
    golden_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (golden_bundle / "labels.txt").write_text("red\ngreen\nblues\n")
    assert verify.main([str(golden_bundle)]) == 1
    assert "labels.txt: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("golden", "holds no golden answers"),
        ("tolerances", "gives the variant 'fp32' no tolerances"),
    ],
)
def test_a_bundle_without_what_is_needed_says_so(
    golden_bundle: Path, capsys: pytest.CaptureFixture[str], key: str, message: str
) -> None:
    path = golden_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    (manifest if key == "golden" else manifest["variants"][0]).pop(key)
    path.write_text(json.dumps(manifest))
    assert verify.main([str(golden_bundle)]) == 1
    assert message in capsys.readouterr().err


def test_an_unknown_variant_is_named(
    golden_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(golden_bundle), "--variant", "int4"]) == 1
    assert "no variant 'int4'; the bundle has fp32" in capsys.readouterr().err


def test_it_is_a_subcommand_and_needs_no_torch(golden_bundle: Path) -> None:
    code = (
        "import sys\n"
        "from foveate_client.cli import main\n"
        f"code = main(['verify', {str(golden_bundle)!r}])\n"
        "print(code, [m for m in ('torch', 'onnx', 'foveate_export') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
