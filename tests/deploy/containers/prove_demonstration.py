"""The first start as a user sees it: the init service builds the demonstration repository.

Apart from the rest because its image holds torch, which takes 6 GB and some
minutes:

    pytest tests/deploy/containers/prove_demonstration.py
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate_client import Cam, Client

from .conftest import DOCKERFILE, ROOT, TAG, Composition, Docker, free_port


@pytest.fixture(scope="module")
def demonstration(docker: Docker, server_image: str) -> Iterator[Composition]:
    docker.build("foveate-train-export", DOCKERFILE, "--target", "train-export")
    composition = Composition(
        docker,
        f"foveate-demonstration-{os.getpid()}",
        (ROOT / "docker-compose.yml",),
        {"TAG": TAG, "PORT": free_port()},
    )
    try:
        composition.up("server")
        yield composition
    finally:
        composition.down()


def test_the_first_start_builds_what_the_server_serves(
    demonstration: Composition, photographs: Path
) -> None:
    docker = demonstration.docker
    docker.wait_for(demonstration.container("server"), "health_status: healthy")
    with Client(demonstration.address) as client:
        answer = client.classify(photographs / "coffee.jpg", cam=Cam(top=1))
    assert answer.predictions[0].label == "espresso"
    assert answer.cams[0].array.max() > 0


def test_the_next_start_keeps_it(demonstration: Composition) -> None:
    manifest = "cat /models/efficientnet_lite0/1/manifest.json; ls /models/efficientnet_lite0"
    server = demonstration.container("server")
    before = demonstration.docker("exec", server, "sh", "-c", manifest)
    demonstration("stop")
    demonstration.up("server")
    server = demonstration.container("server")
    assert demonstration.docker("exec", server, "sh", "-c", manifest) == before


def test_engines_are_built_without_a_gpu(demonstration: Composition) -> None:
    built = demonstration("--profile", "engines", "run", "--rm", "-T", "engines")
    assert "fp32.explain.tensorrt_rtx.sm89.engine" in built
