"""What is written into a repository, and what never is."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveate_export.errors import ExportError, UsageError
from foveate_export.exporter import export
from foveate_export.pictures import Pictures
from foveate_export.publish.bundle import Exported
from foveate_runtime.bundle import publishing
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.publishing import RepositoryError
from foveate_train.classifier import Classifier
from foveate_train.networks.digits import DIGITS, MNIST_INPUT


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_holds_its_files_and_their_digests(
    convnet4: Classifier, convnet4_export: Exported
) -> None:
    path = convnet4_export.path
    assert contents(path) == ["golden.npz", "labels.txt", "manifest.json", "model.onnx"]
    manifest = json.loads((path / "manifest.json").read_text())
    for name in ("golden.npz", "labels.txt", "model.onnx"):
        content = (path / name).read_bytes()
        assert manifest["files"][name] == {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
        }
    assert (path / "labels.txt").read_text() == "".join(f"{n}\n" for n in range(10))
    assert manifest["parameters"] == sum(p.numel() for p in convnet4.module.parameters())
    assert manifest["arguments"] == {"pool": True}
    assert manifest["metadata"] == {"metrics.test_accuracy": "0.1"}
    assert Bundle.open(path).manifest == convnet4_export.manifest
    assert convnet4_export.size == sum(file.stat().st_size for file in path.iterdir())


def test_others_may_read_a_bundle(convnet4_export: Exported) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert convnet4_export.path.stat().st_mode & 0o777 == 0o777 & ~umask


def test_versions_go_up_and_none_is_overwritten(
    tmp_path: Path, convnet4: Classifier, digits: Pictures
) -> None:
    few = Pictures(digits.images[:2], digits.description)
    options = {"repository": tmp_path, "name": "digits", "pictures": few, "layers": []}
    assert export(convnet4, version=3, **options).path == tmp_path / "digits" / "3"
    exported = export(convnet4, **options)
    assert exported.path == tmp_path / "digits" / "4"
    assert exported.manifest.version == 4
    before = (tmp_path / "digits" / "3" / "manifest.json").read_bytes()
    with pytest.raises(RepositoryError, match=r"version 3 .*the next free one is 5"):
        export(convnet4, version=3, **options)
    assert (tmp_path / "digits" / "3" / "manifest.json").read_bytes() == before
    assert names(tmp_path / "digits") == ["3", "4"]


def test_a_version_taken_in_the_meantime_is_stepped_over(
    convnet4_export: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1, 2])
    monkeypatch.setattr(publishing, "next_version", lambda *_: next(free))
    (tmp_path / "digits" / "1" / "taken").mkdir(parents=True)
    manifest = convnet4_export.manifest.model_copy(update={"name": "digits"})
    with publishing.staging(tmp_path, "digits") as stage:
        for name in manifest.files:
            shutil.copy(convnet4_export.path / name, stage)
        path, published = publishing.publish(stage, manifest, tmp_path, None)
    assert path == tmp_path / "digits" / "2"
    assert published.version == Bundle.open(path).manifest.version == 2
    assert names(tmp_path / "digits") == ["1", "2"]


def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, convnet4: Classifier, digits: Pictures
) -> None:
    repository = tmp_path / "models"
    seen: list[list[str]] = []

    class Interrupting:
        def __init__(self, text: str) -> None:
            self.text = text

        def __enter__(self) -> None:
            if self.text.startswith("fp32: comparing"):
                seen.append(contents(repository))
                raise KeyboardInterrupt

        def __exit__(self, *_: object) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        export(convnet4, repository=repository, name="digits", pictures=digits, stage=Interrupting)
    (staged,) = seen
    assert staged[0] == "digits"
    assert all(path.startswith("digits/.export-") for path in staged[1:])
    assert any(path.endswith("/model.onnx") for path in staged)
    assert not repository.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_export_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    repository = tmp_path / "models"
    command = [
        # A test that runs under nohup would hand its own disregard of SIGHUP on.
        "env", "--default-signal", Path(sys.executable).with_name("foveate"),
        "export", "foveate:convnet4",
        "--repository", str(repository), "--name", "digits",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("finding the head"):
                # The graph is being written.
                process.send_signal(number)
                break
        said = process.stderr.read()
        code = process.wait()
    assert code == 130, said
    assert "Traceback" not in said
    assert not repository.exists()


def test_a_repository_that_cannot_be_written(
    tmp_path: Path, convnet4: Classifier, digits: Pictures
) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(RepositoryError, match=r"cannot write to .*file/models: Not a directory"):
        export(convnet4, repository=file / "models", name="digits", pictures=digits)
    assert contents(tmp_path) == ["file"]


def test_a_read_only_repository(convnet4: Classifier, digits: Pictures) -> None:
    # Root may write where permissions forbid it, but not there.
    with pytest.raises(RepositoryError, match=r"cannot write to /proc/models: "):
        export(convnet4, repository=Path("/proc/models"), name="digits", pictures=digits)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    foveate = Path(sys.executable).with_name("foveate")
    weight = numpy_helper.from_array(np.ones((28 * 28, 10), np.float32), "weight")
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["y"]),
        ],
        "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "flat.onnx")
    spec = MNIST_INPUT.model_dump_json()
    (tmp_path / "input.json").write_text(spec, encoding="utf-8")
    (tmp_path / "labels.txt").write_text("\n".join(DIGITS), encoding="utf-8")
    command = f"{foveate} export flat.onnx --input-spec input.json --labels labels.txt"
    command += " --repository models --name flat"
    # A file of more than 16 KiB cannot be written, as on a disk that is full.
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 16 && exec {command}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["", "../outside", "a/b", ".hidden", "ä", "x" * 129])
def test_a_name_that_cannot_be_a_folder_is_refused(
    tmp_path: Path, convnet4: Classifier, digits: Pictures, name: str
) -> None:
    with pytest.raises(UsageError, match="name"):
        export(convnet4, repository=tmp_path, name=name, pictures=digits)
    assert contents(tmp_path) == []


def test_staging_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "digits" / "1").mkdir(parents=True)

    def fail_half_way() -> None:
        with publishing.staging(tmp_path, "digits") as stage:
            (stage / "engines").mkdir()
            (stage / "engines" / "half").write_text("written")
            raise ExportError("no")

    with pytest.raises(ExportError, match="no"):
        fail_half_way()
    assert contents(tmp_path) == ["digits", "digits/1"]


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from foveate_runtime.bundle.publishing import staging\n"
        "with staging(Path(sys.argv[1]), 'digits') as stage:\n"
        "    (stage / 'model.onnx').write_bytes(b'half')\n"
        "    print(stage.name, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = tmp_path / "digits" / process.stdout.readline().strip()
        with publishing.staging(tmp_path, "digits") as stage:
            assert left.is_dir(), "the other export is still at work"
        process.kill()
        process.wait()
    assert (left / "model.onnx").is_file()
    with publishing.staging(tmp_path, "digits") as stage:
        assert names(tmp_path / "digits") == [stage.name]


def test_only_versions_count(tmp_path: Path) -> None:
    model = tmp_path / "digits"
    for name in ("2", "10", "0", "03", "x", ".export-1", "²"):
        (model / name).mkdir(parents=True)
    (model / "99").write_text("a file")
    assert publishing.versions(tmp_path, "digits") == [2, 10]
    assert publishing.next_version(tmp_path, "digits") == 11
    assert publishing.next_version(tmp_path, "nothing") == 1
