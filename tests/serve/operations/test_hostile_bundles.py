"""A version that was made to harm does not load, and the one before it serves on."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper
from PIL import Image

from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate.v1.repository_service_pb2 import LoadModelRequest
from foveate.v1.repository_service_pb2_grpc import RepositoryServiceStub
from foveate_runtime.bundle.signing import sign

from ...colours import colour_graph, relist, write_colour_bundle
from ...conftest import FOVEATE
from ...runtime.bundle.test_hostile import ATTACKS
from ...runtime.bundle.test_signing import public_pem
from ...waiting import wait_until
from .conftest import red, trap

Start = Callable[..., object]


def version_that_answers(server) -> int:
    with server.channel() as channel:
        return int(ClassifierServiceStub(channel).Classify(red(), timeout=60).version)


def load(server, version: int) -> str:
    """Load a version; return the message of the failure, empty where it serves."""
    with server.channel() as channel:
        stub = RepositoryServiceStub(channel)
        try:
            stub.LoadModel(LoadModelRequest(name="colours", version=str(version)), timeout=60)
        except grpc.RpcError as error:
            return error.details()
    return ""


def huge_constant(path: Path) -> None:
    """A graph whose constant takes four terabytes."""
    model = colour_graph()
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [1 << 40])
    model.graph.initializer.append(shape)
    (add,) = (node for node in model.graph.node if "logits" in node.output)
    add.output[0] = "logits_alone"
    last = list(model.graph.node).index(add) + 1
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["zero_of_huge"], keepdims=0),
        helper.make_node("Add", ["logits_alone", "zero_of_huge"], ["logits"]),
    ]
    for place, node in enumerate(nodes):
        model.graph.node.insert(last + place, node)
    onnx.checker.check_model(model)
    (path / "model.onnx").write_bytes(model.SerializeToString())
    relist(path, "model.onnx")


def endless(path: Path) -> None:
    """A graph that loops for ages on the black pictures of the warm-up."""
    model = trap(colour_graph(), brightest=0)
    (path / "model.onnx").write_bytes(model.SerializeToString())
    relist(path, "model.onnx")


def test_the_old_version_serves_whatever_the_new_one_is(start: Start, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_colour_bundle(repository)
    server = start("--admin", repository=repository)
    attacks = {name: attack for name, (attack, _) in ATTACKS.items()}
    for name, attack in attacks.items():
        path = write_colour_bundle(repository, version=2)
        attack(path)
        message = load(server, 2)
        assert message, name
        assert message.isprintable(), name
        assert str(repository) not in message, name
        assert version_that_answers(server) == 1, name
        shutil.rmtree(path)
    assert "Traceback" not in server.log.read_text(encoding="utf-8")
    huge_constant(write_colour_bundle(repository, version=2))
    assert "ONNX Runtime" in load(server, 2)
    assert version_that_answers(server) == 1
    assert server.stop() == 0


def test_a_loop_without_end_is_given_up_and_the_old_version_serves(
    start: Start, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    write_colour_bundle(repository)
    short = ("--shutdown-delay", "0", "--shutdown-timeout", "1")
    server = start("--admin", "--load-timeout", "3", *short, repository=repository)
    endless(write_colour_bundle(repository, version=2))
    assert "has not loaded within 3 s" in load(server, 2)
    assert version_that_answers(server) == 1
    server.stop()


def test_what_is_not_signed_is_refused_and_the_signed_version_serves(
    start: Start, tmp_path: Path
) -> None:
    repository, keys = tmp_path / "repository", tmp_path / "keys.pem"
    key = Ed25519PrivateKey.generate()
    keys.write_bytes(public_pem(key))
    sign(write_colour_bundle(repository), key)
    poll = ("--repository-mode", "poll", "--poll-interval", "0.2")
    server = start("--require-signature", keys, *poll, repository=repository)
    assert version_that_answers(server) == 1
    second = write_colour_bundle(repository, version=2)
    refused = "manifest.sig: the bundle is not signed"
    wait_until(lambda: refused in server.log.read_text(encoding="utf-8"))
    assert version_that_answers(server) == 1
    sign(second, Ed25519PrivateKey.generate())
    refused = "not a signature of this manifest by a required key"
    wait_until(lambda: refused in server.log.read_text(encoding="utf-8"))
    assert version_that_answers(server) == 1
    # Its own owner signs it: the next scan takes it.
    sign(second, key)
    wait_until(lambda: version_that_answers(server) == 2)
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "line"), [(None, "cannot be read"), ("no keys", "it holds no public key")]
)
def test_keys_that_cannot_be_read_are_wrong_usage(
    tmp_path: Path, repository: Path, text: str | None, line: str
) -> None:
    keys = tmp_path / "keys.pem"
    if text is not None:
        keys.write_text(text, encoding="utf-8")
    ended = subprocess.run(
        [FOVEATE, "serve", "--repository", repository, "--require-signature", keys],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("foveate serve: require_signature: ")
    assert line in ended.stderr


def test_classify_in_its_own_process_asks_for_signatures(tmp_path: Path) -> None:
    repository, keys, picture = (tmp_path / name for name in ("repository", "keys.pem", "red.png"))
    path = write_colour_bundle(repository)
    key = Ed25519PrivateKey.generate()
    keys.write_bytes(public_pem(key))
    Image.new("RGB", (8, 8), (255, 0, 0)).save(picture)

    def classify(*flags: str | Path) -> subprocess.CompletedProcess[str]:
        command = [FOVEATE, "classify", picture, "--json", *flags]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    signed = ("--repository", repository, "--require-signature", keys)
    refused = classify(*signed)
    assert refused.returncode == 1
    assert "manifest.sig: the bundle is not signed" in refused.stderr + refused.stdout
    assert "Traceback" not in refused.stderr
    sign(path, key)
    assert '"label": "red"' in classify(*signed).stdout
    wrong = classify("--address", "127.0.0.1:1", "--require-signature", keys)
    assert wrong.returncode == 2
    assert "--require-signature needs --repository" in wrong.stderr
    missing = classify("--repository", repository, "--require-signature", tmp_path / "none.pem")
    assert missing.returncode == 1
    assert "none.pem: cannot be read" in missing.stderr
    assert "Traceback" not in missing.stderr
