"""ONNX files as exporters, converters and services leave them: taken, or refused in a line."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from foveate_export.commands import export as export_command
from foveate_export.errors import ExportError
from foveate_export.existing import open_existing
from foveate_export.publish import bundle
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.bundle.scores import score

SPEC = InputSpec(
    height=32,
    width=32,
    channels=3,
    resize=32,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
LABELS = ["a", "b", "c", "d", "e"]
Export = Callable[..., tuple[int, str]]


def node(kind: str, takes: str, gives: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(kind, takes.split(), gives.split(), **attributes)


BODY = [
    node("Conv", "x w", "m", name="conv"),
    node("Relu", "m", "r", name="relu"),
    node("GlobalAveragePool", "r", "p"),
    node("Flatten", "p", "f"),
    node("Gemm", "f fc bias", "y"),
]
LOGITS = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])


def write(path: str, nodes=BODY, outputs=(LOGITS,), *, batch="n", opset=13, **more) -> None:
    draws = np.random.default_rng(0)
    held = {
        "w": draws.normal(size=(8, 3, 3, 3)).astype("float32"),
        "fc": draws.normal(size=(8, 5)).astype("float32"),
        "bias": np.zeros(5, np.float32),
    } | more
    weights = [numpy_helper.from_array(value, name) for name, value in held.items()]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 32, 32])
    graph = helper.make_graph(nodes, "graph", [image], list(outputs), weights)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


@pytest.fixture
def export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Export:
    """Export a file of the current folder; gives the exit code and the last line of stderr."""
    monkeypatch.chdir(tmp_path)
    Path("input.json").write_text(SPEC.model_dump_json(), encoding="utf-8")
    Path("labels.txt").write_text("\n".join(LABELS), encoding="utf-8")

    def run(path: str, *options: str, labels: bool = True) -> tuple[int, str]:
        named = ["--labels", "labels.txt"] if labels else []
        where = ["--input-spec", "input.json", "--repository", "models", "--name", "m"]
        code = export_command.main([path, *where, *named, *options])
        return code, (capsys.readouterr().err.splitlines() or [""])[-1]

    return run


def opened() -> Bundle:
    return Bundle.open(Path("models/m/1"))


def logits_of(images: np.ndarray) -> np.ndarray:
    with create_runner(opened(), backend="onnxruntime") as runner:
        return runner.run({"image": images}, ["logits"])["logits"]


def expected(path: str, images: np.ndarray, output: str) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    pixels = ((images / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    return np.concatenate([session.run([output], {"x": each[None]})[0] for each in pixels])


IMAGES = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def test_a_reshape_of_a_constant_keeps_its_shape_in_a_file_for_one_picture(export: Export) -> None:
    nodes = [
        node("Conv", "x w", "m", name="conv"),
        node("Reshape", "b shape", "shift"),
        node("Add", "m shift", "s"),
        node("Relu", "s", "r", name="relu"),
        node("GlobalAveragePool", "r", "p"),
        node("Reshape", "p flat", "f"),
        node("Gemm", "f fc bias", "y"),
    ]
    write("fixed.onnx", nodes, batch=1, b=np.arange(8, dtype=np.float32),
          shape=np.array([1, 8, 1, 1]), flat=np.array([1, 8]))  # fmt: skip
    assert export("fixed.onnx")[0] == 0
    assert np.allclose(logits_of(IMAGES), expected("fixed.onnx", IMAGES, "y"), atol=1e-4)


def zipmap(path: str) -> None:
    """Write what services for custom classifiers export: a label, and a map of scores."""
    kind = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    outputs = [
        helper.make_tensor_value_info("classLabel", TensorProto.INT64, ["n", 1]),
        helper.make_value_info("loss", helper.make_sequence_type_proto(kind)),
    ]
    names = [f"{label}-thing".encode() for label in LABELS]
    last = helper.make_node(
        "ZipMap", ["s"], ["loss"], domain="ai.onnx.ml", classlabels_strings=names
    )
    nodes = [*BODY, node("Softmax", "y", "s", axis=1), node("ArgMax", "s", "classLabel", axis=1)]
    write(path, [*nodes, last], outputs)


def test_the_scores_of_a_zipmap_and_their_labels(export: Export) -> None:
    zipmap("custom.onnx")
    assert export("custom.onnx", labels=False)[0] == 0
    bundle_ = opened()
    assert bundle_.labels == tuple(f"{label}-thing" for label in LABELS)
    assert bundle_.manifest.assumptions["labels"] == "those that the ZipMap of the file names"
    assert bundle_.manifest.assumptions["logits"] == "'loss', of the outputs classLabel, loss"
    assert bundle_.manifest.assumptions["layout"] == "nchw, as the input x [n,3,32,32] fits"
    logits = logits_of(IMAGES)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rows = expected("custom.onnx", IMAGES, "loss")
    wanted = [[row[label] for label in bundle_.labels] for row in rows]
    assert np.allclose(shares, wanted, atol=1e-5)


def test_the_labels_of_the_user_come_before_those_of_a_zipmap(export: Export) -> None:
    zipmap("custom.onnx")
    assert export("custom.onnx")[0] == 0
    assert opened().labels == tuple(LABELS)


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 17])
def test_files_of_old_and_new_opsets(opset: int, export: Export) -> None:
    write("net.onnx", opset=opset)
    assert export("net.onnx")[0] == 0
    assert np.allclose(logits_of(IMAGES), expected("net.onnx", IMAGES, "y"), atol=1e-4)


def best_class() -> None:
    best = helper.make_tensor_value_info("best", TensorProto.INT64, ["n", 1])
    write("net.onnx", [*BODY, node("ArgMax", "y", "best", axis=1)], [best])


def dynamic() -> None:
    write("float.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic("float.onnx", "net.onnx")


def outside(data: str) -> None:
    write("whole.onnx")
    onnx.save(
        onnx.load("whole.onnx"), "net.onnx", save_as_external_data=True, location=data,
        size_threshold=0,
    )  # fmt: skip


def linked() -> None:
    outside("net.onnx_data")
    Path("net.onnx_data").rename("blob")
    Path("net.onnx_data").symlink_to("blob")


def missing() -> None:
    outside("net.onnx_data")
    Path("net.onnx_data").unlink()


def labels_missing() -> None:
    write("net.onnx")
    Path("labels.txt").write_text("a\nb\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (best_class, "best is INT64, the index of the best class (ArgMax); floating-point numbers"),
        (dynamic, "is quantised by the values of each batch (DynamicQuantizeLinear), so that"),
        (linked, "net.onnx_data, a symbolic link, which ONNX does not follow; copy the files"),
        (missing, "its weights are in net.onnx_data, which is not beside it"),
        (labels_missing, "2 labels for the 5 classes"),
    ],
)
def test_what_cannot_be_right_is_refused_in_a_line(
    make: Callable[[], None], message: str, export: Export
) -> None:
    make()
    code, last = export("net.onnx")
    assert code in (1, 2)
    assert message in last
    assert not Path("models").exists()


def test_weights_beside_the_file_are_taken(export: Export) -> None:
    outside("net.onnx_data")
    assert export("net.onnx")[0] == 0
    assert np.allclose(logits_of(IMAGES), expected("whole.onnx", IMAGES, "y"), atol=1e-4)


def test_more_than_a_bundle_holds_is_refused_before_it_is_read(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside("net.onnx_data")
    monkeypatch.setattr(bundle, "LARGEST", 1000)
    monkeypatch.setattr(onnx, "load_external_data_for_model", None)
    with pytest.raises(ExportError, match=r"net\.onnx: 0\.0 GB of weights; a bundle holds up to"):
        open_existing(Path("net.onnx"), SPEC)


def test_labels_are_needed_where_the_file_names_none(export: Export) -> None:
    write("net.onnx")
    code, last = export("net.onnx", labels=False)
    assert code == 2
    assert last.endswith("--labels names the classes, which this ONNX file does not")


def test_the_manifest_says_what_was_assumed(export: Export) -> None:
    write("net.onnx")
    assert export("net.onnx", "--layout", "nchw")[0] == 0
    manifest = json.loads(Path("models/m/1/manifest.json").read_text(encoding="utf-8"))
    assert manifest["assumptions"].keys() == {"scores", "head"}
    assert manifest["assumptions"]["head"] == "average pooling, one linear layer"


SOFTMAX = [*BODY[:-1], node("Gemm", "f fc bias", "z"), node("Softmax", "z", "y", axis=1)]


class Ranges(CalibrationDataReader):
    """The pictures on which a quantiser measures ranges, one after another."""

    def __init__(self) -> None:
        pixels = ((IMAGES / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
        self._rest = iter([{"x": each[None]} for each in pixels])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rest, None)


@pytest.mark.parametrize("kept", [True, False])
def test_a_file_that_onnxruntimes_converter_made_float16(kept: bool, export: Export) -> None:
    write("whole.onnx", SOFTMAX)
    onnx.save(convert_float_to_float16(onnx.load("whole.onnx"), keep_io_types=kept), "net.onnx")
    code, last = export("net.onnx")
    assert code == 0, last
    scores = score(logits_of(IMAGES), opened().manifest.scores)
    assert np.allclose(scores, expected("whole.onnx", IMAGES, "y"), atol=2e-3)
    said = opened().manifest.assumptions.get("file")
    assert said == (None if kept else "x is float16 in the file; float32 is taken and cast")


def test_an_input_of_doubles_is_cast_and_one_of_whole_numbers_refused(export: Export) -> None:
    write("whole.onnx")
    for kind, code in ((TensorProto.DOUBLE, 0), (TensorProto.INT64, 1)):
        model = onnx.load("whole.onnx")
        model.graph.input[0].name = "raw"
        model.graph.input[0].type.tensor_type.elem_type = kind
        model.graph.node.insert(0, node("Cast", "raw", "x", to=TensorProto.FLOAT))
        onnx.save(model, "net.onnx")
        done, last = export("net.onnx")
        assert done == code, last
    assert "the input raw is INT64; float32 is expected: put a Cast from it in front" in last
    assert np.allclose(logits_of(IMAGES), expected("whole.onnx", IMAGES, "y"), atol=1e-4)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize("end", ["softmax", "logits"])
def test_a_file_that_onnxruntime_quantised(form: QuantFormat, end: str, export: Export) -> None:
    write("whole.onnx", SOFTMAX if end == "softmax" else BODY)
    quantize_static("whole.onnx", "net.onnx", Ranges(), quant_format=form)
    code, last = export("net.onnx")
    if end == "softmax" and form is QuantFormat.QOperator:
        assert code == 1
        assert "a quantised softmax (QLinearSoftmax)" in last
        assert "quantise the file again without its last operator (nodes_to_exclude)" in last
        return
    assert code == 0, last
    got, wanted = logits_of(IMAGES), expected("net.onnx", IMAGES, "y")
    if end == "softmax":
        # What stands behind the softmax rounds its scores to 256 levels.
        assert opened().manifest.assumptions["file"].startswith("the scores y_QuantizeLinear_Input")
        assert np.allclose(score(got, opened().manifest.scores), wanted, atol=1 / 50)
    else:
        assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.999
    assert [variant.name for variant in opened().manifest.variants] == ["int8"]


def azure(path: str, names: list[str]) -> None:
    """Write what Azure Custom Vision exports: levels, blue first, and a label and a map."""
    kind = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    nodes = [
        node("Transpose", "data", "x", perm=[0, 1, 2, 3]),
        *SOFTMAX,
        node("ArgMax", "y", "best", axis=1, keepdims=0),
        helper.make_node(
            "ArrayFeatureExtractor", ["names", "best"], ["label"], domain="ai.onnx.ml"
        ),
        node("Reshape", "label any", "classLabel"),
        helper.make_node("ZipMap", ["y"], ["loss"], domain="ai.onnx.ml", classlabels_strings=names),
    ]
    outputs = [
        helper.make_tensor_value_info("classLabel", TensorProto.STRING, ["n"]),
        helper.make_value_info("loss", helper.make_sequence_type_proto(kind)),
    ]
    write(path, nodes, outputs, any=np.array([-1]), w=WEIGHTS)
    model = onnx.load(path)
    model.graph.input[0].name = "data"
    words = [name.encode() for name in names]
    model.graph.initializer.append(
        helper.make_tensor("names", TensorProto.STRING, [len(names)], words)
    )
    onnx.save(model, path)


# So small that levels from 0 to 255 give scores between 0 and 1.
WEIGHTS = (np.random.default_rng(2).normal(size=(8, 3, 3, 3)) / 500).astype("float32")


def test_a_file_of_azure_custom_vision_gives_its_own_scores_and_labels(export: Export) -> None:
    names = ["apple, red", "banana", "Negative", "cherry", "dätes"]
    azure("custom.onnx", names)
    levels = SPEC.model_copy(update={"mean": (0.0,) * 3, "std": (1 / 255,) * 3})
    Path("input.json").write_text(levels.model_dump_json(), encoding="utf-8")
    assert export("custom.onnx", "--bgr", labels=False)[0] == 0
    bundle = opened()
    assert bundle.labels == tuple(names)
    assert {cam.method for cam in bundle.manifest.cams} >= {"cam", "gradcam"}
    session = onnxruntime.InferenceSession("custom.onnx")
    blue_first = IMAGES[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
    maps = [session.run(["loss"], {"data": each[None]})[0][0] for each in blue_first]
    wanted = [[scores[name] for name in names] for scores in maps]
    got = score(logits_of(IMAGES), bundle.manifest.scores)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
    assert np.ptp(got, axis=0).max() > 1e-3


LABEL_FILES = {
    "names.json": '["a", "b, c", "d", "e", "f"]',
    "config.json": '{"id2label": {"0": "a", "1": "b, c", "2": "d", "4": "f", "3": "e"}}',
    "index.json": '{"f": 4, "b, c": 1, "a": 0, "d": 2, "e": 3}',
    "coins.txt": "1 euro\n2 euro\n3 euro\na, b\n5\n",
}


@pytest.mark.parametrize("name", LABEL_FILES)
def test_labels_of_json_are_read_and_lines_are_left_alone(name: str, export: Export) -> None:
    write("net.onnx")
    Path(name).write_text(LABEL_FILES[name], encoding="utf-8")
    assert export("net.onnx", "--labels", name, labels=False)[0] == 0
    expected_labels = ("a", "b, c", "d", "e", "f")
    lines = ("1 euro", "2 euro", "3 euro", "a, b", "5")
    assert opened().labels == (lines if name == "coins.txt" else expected_labels)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "0,a\n1,b\n2,c\n3,d\n4,e\n", "numbers stand before the labels, as in '4,e'"),
        ("l.csv", "id,label\n0,a\n1,b\n2,c\n3,d\n4,e\n", "leave out the numbers and a heading"),
        ("l.txt", "1 a\n2 b\n3 c\n4 d\n5 e\n", "numbers stand before the labels, as in '5 e'"),
        ("l.txt", "0: a\n1: b\n2: c\n3: d\n4: e\n", "numbers stand before the labels"),
        ("l.json", '{"1": "a", "2": "b"}', "its classes are not numbered from 0 to 1 as the outp"),
        ("l.json", '{"a": 0, "b": 0}', "its classes are not numbered from 0 to 1"),
        ("l.json", '{"a": [1]}', "its classes are not numbered from 0 to 0"),
        ("l.json", '["a", 3]', "is neither a list of labels nor a table"),
        ("l.json", "[]", "is neither a list of labels nor a table"),
        ("l.json", "a\nb\n", "l.json: no JSON"),
    ],
)
def test_label_files_that_say_something_else_are_refused(
    name: str, text: str, message: str, export: Export
) -> None:
    write("net.onnx")
    Path(name).write_text(text, encoding="utf-8")
    code, last = export("net.onnx", "--labels", name, labels=False)
    assert code == 2
    assert message in last


@pytest.mark.parametrize("first", [False, True])
def test_initialisers_that_are_inputs_too_as_in_old_files(first: bool, export: Export) -> None:
    """The third version of the format wants them there."""
    write("old.onnx")
    model = onnx.load("old.onnx")
    inputs = [
        helper.make_tensor_value_info(each.name, each.data_type, each.dims)
        for each in model.graph.initializer
    ]
    (image,) = model.graph.input
    ordered = [*inputs, image] if first else [image, *inputs]
    held = [type(image).FromString(each.SerializeToString()) for each in ordered]
    del model.graph.input[:]
    model.graph.input.extend(held)
    model.ir_version = 3
    onnx.save(model, "old.onnx")
    code, said = export("old.onnx")
    assert code == 0, said
    np.testing.assert_allclose(
        logits_of(IMAGES), expected("old.onnx", IMAGES, "y"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("count", [3, 5])
def test_sorted_outputs_are_no_classes(count: int, export: Export) -> None:
    nodes = [*BODY, node("TopK", "y k", "values places")]
    values = helper.make_tensor_value_info("values", TensorProto.FLOAT, ["n", count])
    places = helper.make_tensor_value_info("places", TensorProto.INT64, ["n", count])
    write("top.onnx", nodes, [values, places], k=np.array([count]))
    code, said = export("top.onnx")
    assert code == 1
    assert "the output values is sorted (TopK)" in said
    assert "--logits" in said


def test_weights_that_are_no_number_are_named(export: Export) -> None:
    write("nan.onnx", fc=np.full((8, 5), np.nan, np.float32))
    code, said = export("nan.onnx")
    assert code == 1
    assert "nan.onnx: its weights fc hold values that are no number (NaN)" in said


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "fetch it again"),
        (b"PK\x03\x04 and more", "unpack it"),
        (b"\x80\x02 something else", "export the network to ONNX again"),
    ],
)
def test_what_is_no_onnx_file_says_what_to_do(content: bytes, advice: str, export: Export) -> None:
    Path("net.onnx").write_bytes(content)
    code, said = export("net.onnx")
    assert code == 1
    assert "net.onnx is no ONNX file" in said
    assert advice in said
