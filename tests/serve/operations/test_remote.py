"""A server of a repository at a URL: it follows the place, and outlives it."""

import os
from pathlib import Path

import pytest

from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

from ...colours import write_colour_bundle
from ...waiting import wait_until
from .conftest import Server, Start, red


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with version 1, and have servers keep what they fetch beside it."""
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    write_colour_bundle(tmp_path / "place")
    return tmp_path / "place"


def version_of(server: Server) -> str:
    with server.channel() as channel:
        return ClassifierServiceStub(channel).Classify(red(), timeout=60).version


def put(place: Path, version: int, *, cut: bool = False) -> None:
    """Write a version beside the place, and move it there."""
    made = write_colour_bundle(place.with_name(f"made{version}"), version=version)
    if cut:
        os.truncate(made / "model.onnx", 10)
    made.rename(place / "colours" / str(version))


def test_it_serves_what_is_whole_and_tells_in_a_line_what_is_not(place: Path, start: Start) -> None:
    flags = ("--repository-mode", "poll", "--poll-interval", "0.1")
    server = start(*flags, repository=place.as_uri())
    assert version_of(server) == "1"
    put(place, 2)
    wait_until(lambda: version_of(server) == "2")
    put(place, 3, cut=True)
    told = f"{place.as_uri()}/colours/3: model.onnx: 10 bytes, and the manifest says"
    wait_until(lambda: told in server.log.read_text("utf-8"))
    assert version_of(server) == "2"
    assert server.log.read_text("utf-8").count(told) == 1
    # The place goes away, and the server goes on; so does one that starts now.
    place.rename(place.with_name("gone"))
    wait_until(lambda: "there is no such folder" in server.log.read_text("utf-8"))
    assert version_of(server) == "2"
    other = start(repository=place.as_uri())
    assert version_of(other) == "2"
    text = other.log.read_text("utf-8")
    assert "there is no such folder; what was fetched before is used" in text
    assert server.stop() == 0


def test_workers_share_what_was_fetched_once(place: Path, start: Start) -> None:
    flags = ("--workers", "2", "--repository-mode", "poll", "--poll-interval", "0.1")
    server = start(*flags, repository=place.as_uri())
    put(place, 2)
    wait_until(lambda: {version_of(server) for _ in range(8)} == {"2"})
    assert server.log.read_text("utf-8").count("fetched colours/2") == 1
