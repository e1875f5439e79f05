"""Engines are really built, by TensorRT-RTX and without a GPU; a bundle takes them whole or not."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
import tensorrt_rtx
from numpy.typing import NDArray
from onnx import helper
from torch import nn

from foveate_export.commands import engines as engines_command
from foveate_export.commands import export as export_command
from foveate_export.errors import EngineError, UsageError
from foveate_export.exporter import examine, export
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_export.graph.onnx import OPSET, write_onnx
from foveate_export.pictures import Pictures
from foveate_export.publish.bundle import Exported
from foveate_export.publish.tensorrt import builder, engines, target
from foveate_export.publish.tensorrt.builder import build
from foveate_export.publish.tensorrt.engines import add_engines, suitable_variants
from foveate_export.publish.tensorrt.target import Target, choose_target
from foveate_export.publish.variants.calibration import Calibration
from foveate_export.publish.variants.half import halve
from foveate_export.publish.variants.quantise import candidates
from foveate_runtime.backends.base import BackendError, graph_outputs
from foveate_runtime.backends.tensorrt.flavour import TENSORRT_RTX, load_library
from foveate_runtime.backends.tensorrt.sidecar import Range, Sidecar, find_engines
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import MOST_RANKS
from foveate_runtime.bundle.publishing import RepositoryError
from foveate_train import registry
from foveate_train.classifier import Classifier

pytestmark = pytest.mark.engines

VARIANTS = ("fp32", "fp16", "int8", "int8-symmetric")
SUITABLE = ["fp32", "fp16", "int8-symmetric"]


@pytest.fixture(scope="module")
def ada() -> Target:
    return choose_target("tensorrt_rtx", ["8.9"], batch=Range(minimum=1, optimum=2, maximum=4))


@pytest.fixture(scope="module")
def exported(
    convnet4: Classifier, digits: Pictures, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A network of digits in every precision."""
    return export(
        convnet4,
        repository=tmp_path_factory.mktemp("precisions"),
        name="digits",
        pictures=Pictures(digits.images[:4], digits.description),
        variants=VARIANTS,
        calibration=Calibration(digits.images[:16], digits.description),
    )


@pytest.fixture
def bundle(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the bundle, to write to."""
    path = tmp_path / "digits" / "1"
    shutil.copytree(exported.path, path)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }


def test_every_precision_gets_an_engine_to_classify_and_one_to_explain(
    bundle: Path, ada: Target
) -> None:
    before = contents(bundle)
    built = add_engines(bundle, [], ada)
    assert [(s.variant, s.kind) for s in built] == [
        (variant, kind) for variant in SUITABLE for kind in ("classify", "explain")
    ]
    opened = Bundle.open(bundle)
    version = tensorrt_rtx.__version__
    for variant in SUITABLE:
        found = find_engines(
            opened, variant=variant, flavour="tensorrt_rtx", version=version, capability="8.9"
        )
        classify, explain = found
        assert classify.sidecar.outputs == ("logits",)
        assert explain.sidecar.outputs == tuple(graph_outputs(opened.manifest))
        onnx_file = opened.manifest.variant(variant).file
        for engine in found:
            sidecar = engine.sidecar
            assert hashlib.sha256(engine.read()).hexdigest() == sidecar.engine_sha256
            assert sidecar.onnx_sha256 == hashlib.sha256(before[onnx_file]).hexdigest()
            assert sidecar.batch == Range(minimum=1, optimum=2, maximum=4)
            assert sidecar.build_seconds is not None
            assert sidecar.build_seconds > 0
    # Everything else is as it was, but for the manifest's list of files.
    after = contents(bundle)
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert len(after) == len(before) + 12


def test_half_precision_takes_less(bundle: Path, ada: Target) -> None:
    sizes = {s.variant: s.engine_size for s in add_engines(bundle, [], ada) if s.kind == "classify"}
    assert sizes["fp16"] < 0.75 * sizes["fp32"]


def in_every_precision(graph: Path, images: NDArray[np.uint8]) -> list[Path]:
    """Write what TensorRT takes beside a float graph; no layer of int8 is kept in float."""
    half, int8 = graph.with_name("half.onnx"), graph.with_name("int8.onnx")
    halve(graph, half)
    next(candidates(graph, int8, images, "symmetric", stage=nullcontext))
    return [graph, half, int8]


def test_lite0_engines_in_every_precision(
    lite0_export: Exported, photographs: Pictures, tmp_path: Path, ada: Target
) -> None:
    graph = Path(shutil.copy(lite0_export.path / "model.onnx", tmp_path))
    outputs = tuple(graph_outputs(lite0_export.manifest))
    for file in in_every_precision(graph, photographs.images[:2]):
        assert len(build(file, outputs, ada)) > 1_000_000


@pytest.mark.parametrize(
    ("name", "outputs"),
    # Engines that explain VGG-16 take as long again; benchmarks/engines.py builds them.
    [("torchvision:resnet50", ["logits", "cam.cam"]), ("torchvision:vgg16", ["logits"])],
)
def test_engines_of_large_networks_in_every_precision(
    name: str, outputs: list[str], photographs: Pictures, ada: Target
) -> None:
    network = registry.create(name, weights="random:0")
    head = examine(network).head
    graph = ExplainedClassifier(network.module, network.input, head, []).eval()
    parameters = sum(weight.numel() for weight in network.module.parameters())
    # Not in `tmp_path`, of which pytest keeps the last three: VGG-16 takes a gigabyte.
    with TemporaryDirectory() as folder:
        written = Path(folder, "model.onnx")
        write_onnx(graph, network.input, written)
        for file in in_every_precision(written, photographs.images[:2]):
            # Every weight is in the engine, in a byte at least.
            assert len(build(file, outputs, ada)) > parameters


def test_more_classes_than_tensorrt_sorts_get_an_engine_that_explains(
    digit_classifier: Callable[..., Classifier],
    digits: Pictures,
    tmp_path: Path,
    ada: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classes = MOST_RANKS + 1000
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )
    labels = tuple(map(str, range(classes)))
    classifier = replace(digit_classifier(network), labels=labels)
    exported = export(
        classifier, repository=tmp_path, name="many", pictures=digits, variants=("fp32", "fp16")
    )
    outputs = graph_outputs(exported.manifest)
    for file in ("model.onnx", "model.fp16.onnx"):
        assert len(build(exported.path / file, outputs, ada)) > 4 * 8 * classes / 2
    # That many ranks and no more: TensorRT refuses to sort further.
    monkeypatch.setattr("foveate_export.graph.classifier.MOST_RANKS", MOST_RANKS + 1)
    file = export(classifier, repository=tmp_path, name="more", pictures=digits).path / "model.onnx"
    with pytest.raises(EngineError, match=str(MOST_RANKS)):
        build(file, outputs, ada)


def test_one_engine_for_several_gpus(exported: Exported, bundle: Path) -> None:
    chosen = choose_target("tensorrt_rtx", ["12.0", "8.6"])
    assert chosen.capabilities == ("8.6", "12.0")
    (classify, _) = add_engines(bundle, ["fp32"], chosen)
    assert classify.stem == "fp32.classify.tensorrt_rtx.sm86-sm120"
    opened = Bundle.open(bundle)
    for capability in chosen.capabilities:
        found = find_engines(
            opened,
            variant="fp32",
            flavour="tensorrt_rtx",
            version=tensorrt_rtx.__version__,
            capability=capability,
        )
        assert len(found) == 2
    with pytest.raises(BackendError, match=r"is for compute capability 8\.6, 12\.0"):
        find_engines(
            opened,
            variant="fp32",
            flavour="tensorrt_rtx",
            version=tensorrt_rtx.__version__,
            capability="8.9",
        )


def test_engines_of_another_gpu_are_added_and_the_same_are_replaced(
    bundle: Path, ada: Target
) -> None:
    add_engines(bundle, ["fp32"], ada)
    first = Bundle.open(bundle).manifest.files
    add_engines(bundle, ["fp32"], choose_target("tensorrt_rtx", ["12.0"]))
    both = Bundle.open(bundle).manifest.files
    assert first.items() < both.items()
    add_engines(bundle, ["fp32"], ada)
    again = Bundle.open(bundle).manifest.files
    assert again.keys() == both.keys()


def test_a_graph_that_tensorrt_does_not_take_is_named_with_its_node(
    tmp_path: Path, ada: Target, exported: Exported
) -> None:
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("StringNormalizer", ["image"], ["logits"], name="shout")],
        "text",
        [tensor("image", onnx.TensorProto.STRING, ["N", 1])],
        [tensor("logits", onnx.TensorProto.STRING, ["N", 1])],
    )
    file = tmp_path / "text.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]), file)
    with pytest.raises(EngineError, match=r"does not take text\.onnx"):
        build(file, ["logits"], ada)
    file = exported.path / "model.int8.onnx"
    with pytest.raises(EngineError, match=r"node '.+' \(DequantizeLinear\): .*Int32"):
        build(file, ["logits"], ada)


def test_a_gpu_that_cannot_compute_it_is_named(exported: Exported) -> None:
    turing = choose_target("tensorrt_rtx", ["7.5"])
    with pytest.raises(
        EngineError, match=r"model\.onnx for compute capability 7\.5: .*not supported"
    ):
        build(exported.path / "model.onnx", ["logits"], turing)


def test_an_output_that_the_graph_lacks(exported: Exported, ada: Target) -> None:
    with pytest.raises(EngineError, match=r"no output cam\.scorecam"):
        build(exported.path / "model.onnx", ["logits", "cam.scorecam"], ada)


def test_asymmetric_activations_are_left_out_and_refused(
    exported: Exported, bundle: Path, ada: Target
) -> None:
    assert suitable_variants(exported.manifest) == SUITABLE
    with pytest.raises(UsageError, match=r"int8: its activations are asymmetric"):
        add_engines(bundle, ["int8"], ada)
    with pytest.raises(UsageError, match=r"no variant int4; the bundle has fp32, fp16, int8"):
        add_engines(bundle, ["int4"], ada)


def test_a_failure_half_way_leaves_the_bundle_as_it_was(
    bundle: Path, ada: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(bundle)
    made: list[str] = []

    def interrupted(*arguments: object) -> bytes:
        if made:
            raise KeyboardInterrupt
        made.append("an engine")
        return build(*arguments)

    monkeypatch.setattr(engines, "build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_engines(bundle, ["fp32"], ada)
    assert contents(bundle) == before
    assert not (bundle / "engines").exists()


def test_a_full_disk_leaves_the_bundle_as_it_was(
    bundle: Path, ada: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(bundle)
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RepositoryError, match=r"\.engine: cannot be written: No space left"):
        add_engines(bundle, ["fp32"], ada)
    monkeypatch.undo()
    assert contents(bundle) == before


def test_the_bundle_can_be_opened_at_every_moment(
    bundle: Path, ada: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_engines(bundle, ["fp32"], ada)
    listed: list[int] = []
    replace = Path.replace

    def observed(source: Path, to: Path) -> Path:
        moved = replace(source, to)
        listed.append(sum(f.endswith(".engine") for f in Bundle.open(bundle).manifest.files))
        return moved

    monkeypatch.setattr(Path, "replace", observed)
    add_engines(bundle, ["fp32"], ada)
    # The list shrinks, two engines and two sidecars are replaced, the list grows.
    assert listed == [0, 0, 0, 0, 0, 2]


@pytest.fixture
def timing_cache_config() -> tuple[object, object]:
    """A builder and its configuration. TensorRT-RTX has the timing cache's interface, and no use.

    The configuration lives no longer than its builder.
    """
    library = load_library(TENSORRT_RTX)
    made = library.module.Builder(library.logger)
    return made, made.create_builder_config()


def test_a_timing_cache_is_kept_in_a_file(
    timing_cache_config: tuple[object, object], tmp_path: Path
) -> None:
    _, config = timing_cache_config
    library = load_library(TENSORRT_RTX)
    file = tmp_path / "caches" / "rtx"
    with pytest.warns(DeprecationWarning, match="Timing cache"):
        builder.read_timing_cache(config, file, library)
    with pytest.warns(DeprecationWarning, match="Timing cache"):
        builder.write_timing_cache(config, file)
    assert file.stat().st_size > 0
    assert list(file.parent.iterdir()) == [file]
    with pytest.raises(RepositoryError, match=r"timing cache .*/rtx/below: File exists"):
        builder.write_timing_cache(config, file / "below")


def test_what_is_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    known = r"TensorRT-RTX [\d.]+ builds for 7\.5, 8\.0, 8\.6, 8\.9, 12\.0"
    with pytest.raises(UsageError, match=rf"compute capability 9\.0: {known}"):
        choose_target("tensorrt_rtx", ["8.9", "9.0"])
    with pytest.raises(UsageError, match="TensorRT-RTX has none"):
        choose_target("tensorrt_rtx", ["8.9"], timing_cache=Path("cache"))

    def no_gpu(_: str) -> int:
        raise BackendError("the GPU cannot be used: no driver")

    monkeypatch.setattr(target.cuda, "find_gpu", no_gpu)
    with pytest.raises(UsageError, match=rf"there is none here; {known}"):
        choose_target("tensorrt_rtx")
    monkeypatch.setattr(target, "load_library", lambda _: load_library(TENSORRT_RTX))
    monkeypatch.setattr(target.cuda, "find_gpu", lambda _: 0)
    monkeypatch.setattr(target.cuda, "capability", lambda _: "8.6")
    assert choose_target("tensorrt_rtx").capabilities == ("8.6",)


@pytest.fixture
def command(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = engines_command.main([str(bundle), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_command_builds_and_tells(command: Callable[..., tuple[int, str, str]]) -> None:
    options = ["--flavour", "tensorrt_rtx", "--compute-capability", "8.9", "--variants", "fp32"]
    code, out, err = command(*options, "--batch", "1,2,4", "--classes", "1,1,3", "--json")
    assert code == 0
    classify, explain = (Sidecar.model_validate(sidecar) for sidecar in json.loads(out))
    assert (classify.kind, explain.kind) == ("classify", "explain")
    assert explain.batch == Range(minimum=1, optimum=2, maximum=4)
    assert explain.classes == Range(minimum=1, optimum=1, maximum=3)
    assert "fp32: building the engine to explain with TensorRT-RTX" in err
    code, out, _ = command(*options)
    assert code == 0
    assert out.startswith("engines/fp32.classify.tensorrt_rtx.sm89.engine: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--compute-capability", "9.0"], 2, "compute capability 9.0: TensorRT-RTX"),
        (["--compute-capability", "8.9", "--variants", "int4"], 2, "no variant int4"),
        (["--compute-capability", "7.5", "--variants", "fp32"], 1, "not supported"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    command: Callable[..., tuple[int, str, str]],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    done, out, err = command("--flavour", "tensorrt_rtx", *arguments)
    assert (done, out) == (code, "")
    last = err.splitlines()[-1]
    assert last.startswith("foveate engines: ")
    assert message in last


@pytest.mark.parametrize("sizes", ["8", "1,2", "4,2,8", "0,1,2", "1,x,2"])
def test_a_range_is_three_numbers(
    command: Callable[..., tuple[int, str, str]], sizes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command("--batch", sizes)
    assert caught.value.code == 2
    assert "three whole numbers" in capsys.readouterr().err


RTX = ["--tensorrt", "--flavour", "tensorrt_rtx", "--compute-capability"]


def test_export_builds_engines_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--repository", str(tmp_path), "--name", "digits"]
    assert export_command.main(["foveate:convnet4", *where, *RTX, "8.9"]) == 0
    assert "engines/fp32.explain.tensorrt_rtx.sm89.engine: " in capsys.readouterr().out
    found = find_engines(
        Bundle.open(tmp_path / "digits" / "1"),
        variant="fp32",
        flavour="tensorrt_rtx",
        version=tensorrt_rtx.__version__,
        capability="8.9",
    )
    assert [engine.sidecar.kind for engine in found] == ["classify", "explain"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([*RTX, "9.0"], 2, "compute capability 9.0"),
        ([*RTX[1:], "8.9"], 2, "go with --tensorrt"),
        ([*RTX, "7.5"], 1, "model.onnx for compute capability 7.5"),
    ],
)
def test_an_export_without_its_engines_is_not_published(
    options: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--repository", str(tmp_path / "models"), "--name", "digits"]
    assert export_command.main(["foveate:convnet4", *where, *options]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_terminated_build_leaves_the_bundle_as_it_was(bundle: Path) -> None:
    before = contents(bundle)
    arguments = [
        *("engines", str(bundle), "--flavour", "tensorrt_rtx"),
        *("--compute-capability", "8.9", "--variants", "fp32,fp16"),
    ]
    foveate = Path(sys.executable).with_name("foveate")
    with subprocess.Popen([foveate, *arguments], stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("fp32: building the engine to classify"):
                # The next is being built.
                process.send_signal(signal.SIGTERM)
                break
        said = process.stderr.read()
        code = process.wait()
    assert code == 130, said
    assert "Traceback" not in said
    assert contents(bundle) == before
