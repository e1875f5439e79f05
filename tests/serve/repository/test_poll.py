"""The folder decides: what is copied there serves, what is changed is read anew, what goes goes."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from foveate_runtime.backends.registry import create_runner
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State

Write = Callable[..., Path]


@pytest_asyncio.fixture
async def repository(tmp_path: Path, write_bundle: Write) -> AsyncIterator[Repository]:
    write_bundle()
    repository = Repository(tmp_path / "repository", create_runner, BatchPolicy(max_batch=1))
    await repository.open()
    yield repository
    await repository.close()


def states(repository: Repository, name: str = "colours") -> dict[int, State]:
    found = [status for status in repository.models() if status.name == name]
    return {v.version: v.state for status in found for v in status.versions}


def reason(repository: Repository) -> str:
    return repository.models()[0].versions[0].reason


def rewrite(bundle: Path) -> None:
    """Change the manifest, as the export of another model of the same name and version would."""
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace("tests:colours", "tests:others"))


async def test_a_folder_that_stays_as_it_is_changes_nothing(repository: Repository) -> None:
    before = repository.get("colours", "")
    await repository.poll()
    assert repository.get("colours", "") is before


async def test_a_new_version_takes_the_place_of_the_old(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle(version=2)
    write_bundle(name="others")
    await repository.poll()
    assert states(repository) == {2: State.READY, 1: State.UNLOADED}
    assert states(repository, "others") == {1: State.READY}


async def test_a_labelled_version_stays_beside_a_new_one(
    repository: Repository, write_bundle: Write
) -> None:
    await repository.set_labels("colours", {"stable": "1"})
    write_bundle(version=2)
    await repository.poll()
    assert states(repository) == {2: State.READY, 1: State.READY}
    assert repository.get("colours", "").bundle.manifest.version == 1


async def test_a_changed_manifest_is_read_anew(repository: Repository) -> None:
    before = repository.get("colours", "")
    rewrite(before.bundle.path)
    await repository.poll()
    assert repository.get("colours", "").bundle.manifest.classifier == "tests:others"
    assert repository.get("colours", "") is not before


async def test_a_half_copied_bundle_waits_for_the_rest(
    repository: Repository, write_bundle: Write, tmp_path: Path
) -> None:
    path = write_bundle(version=2)
    graph = (path / "model.onnx").read_bytes()
    (path / "model.onnx").write_bytes(graph[:100])
    for _ in range(2):
        await repository.poll()
        assert states(repository) == {2: State.FAILED, 1: State.READY}
        assert f"model.onnx: 100 bytes, and the manifest says {len(graph)}" in reason(repository)
    (path / "model.onnx").write_bytes(graph)
    await repository.poll()
    assert states(repository) == {2: State.READY, 1: State.UNLOADED}
    assert reason(repository) == ""


async def test_what_fails_is_not_tried_again_until_it_changes(
    repository: Repository, write_bundle: Write, tmp_path: Path
) -> None:
    loads = []

    def note(bundle: object) -> object:
        loads.append(bundle)
        return create_runner(bundle)

    repository._make_runner = note
    path = write_bundle(version=2)
    (path / "extra.txt").touch()
    manifest = (path / "manifest.json").read_text("utf-8")
    (path / "manifest.json").write_text(manifest.replace('"version": 2', '"version": 3'))
    await repository.poll()
    await repository.poll()
    assert states(repository) == {2: State.FAILED, 1: State.READY}
    assert loads == []
    (path / "manifest.json").write_text(manifest)
    await repository.poll()
    await repository.poll()
    assert states(repository) == {2: State.READY, 1: State.UNLOADED}
    assert len(loads) == 1


async def test_a_broken_change_leaves_the_old_one_serving_and_says_so(
    repository: Repository,
) -> None:
    before = repository.get("colours", "")
    (before.bundle.path / "manifest.json").write_text("{")
    await repository.poll()
    assert repository.get("colours", "") is before
    assert "manifest.json" in reason(repository)


async def test_what_is_removed_goes_and_an_older_one_answers(
    repository: Repository, write_bundle: Write
) -> None:
    path = write_bundle(version=2)
    await repository.poll()
    shutil.rmtree(path)
    await repository.poll()
    assert states(repository) == {1: State.READY}
    shutil.rmtree(path.parent)
    await repository.poll()
    assert repository.models() == []


async def test_an_unreadable_folder_changes_nothing(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "repository").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        await repository.poll()
    assert states(repository) == {1: State.READY}


async def test_polls_under_load_lose_no_request(
    repository: Repository, write_bundle: Write
) -> None:
    done = asyncio.Event()
    image = np.full((8, 8, 3), (255, 0, 0), dtype=np.uint8)
    versions: set[int] = set()

    async def ask() -> None:
        while not done.is_set():
            model = repository.get("colours", "")
            with model.in_use():
                versions.add(model.bundle.manifest.version)
                with model.batcher.places() as places:
                    result = await model.batcher.submit(places, image, outputs=("logits",))
                assert float(result.outputs["logits"][0]) == 1.25

    callers = [asyncio.create_task(ask()) for _ in range(8)]
    for version in (2, 3, 4):
        write_bundle(version=version)
        await repository.poll()
    done.set()
    await asyncio.gather(*callers)
    assert versions >= {1, 2, 3}
