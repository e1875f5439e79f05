"""The folder decides: what is copied there serves, what is changed is read anew, what goes goes."""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.folder import ModelSighting
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import Model, State

Write = Callable[..., Path]
Change = Callable[[Path], None]


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
    write_bundle(name="others")
    await repository.poll()
    shutil.rmtree(path)
    await repository.poll()
    assert states(repository) == {1: State.READY}
    shutil.rmtree(path.parent)
    await repository.poll()
    assert [model.name for model in repository.models()] == ["others"]


def loop(path: Path) -> None:
    """Put what nobody can read in the place of a file or a folder, which moves aside."""
    path.rename(path.with_name(f".{path.name}"))
    path.symlink_to(path.name)


def restore(path: Path) -> None:
    path.unlink()
    path.with_name(f".{path.name}").rename(path)


def empty(path: Path) -> None:
    """Put an empty folder in the place of one, as a mount point whose mount has dropped."""
    path.rename(path.with_name(f".{path.name}"))
    path.mkdir()


def refill(path: Path) -> None:
    path.rmdir()
    path.with_name(f".{path.name}").rename(path)


def gone(path: Path) -> None:
    path.rename(path.with_name(f".{path.name}"))


def back(path: Path) -> None:
    path.with_name(f".{path.name}").rename(path)


LOOP = os.strerror(errno.ELOOP)


@pytest.mark.parametrize(
    ("place", "changes", "told"),
    [
        ("", (loop, restore), f"{LOOP}: the repository's folder"),
        ("", (empty, refill), "it is empty: the repository's folder"),
        ("", (gone, back), "No such file or directory: the repository's folder"),
        ("colours", (loop, restore), f"{LOOP}: colours"),
        ("colours", (empty, refill), "no manifest: colours/1"),
        ("colours/1", (loop, restore), f"{LOOP}: colours/1"),
        ("colours/1", (empty, refill), "no manifest: colours/1"),
        ("colours/1", (gone, back), "no manifest: colours/1"),
        ("colours/1/manifest.json", (loop, restore), f"{LOOP}: colours/1"),
        ("colours/1/manifest.json", (gone, back), "no manifest: colours/1"),
    ],
)
async def test_what_cannot_be_read_serves_on_and_says_why(
    repository: Repository,
    caplog: pytest.LogCaptureFixture,
    place: str,
    changes: tuple[Change, Change],
    told: str,
) -> None:
    caplog.set_level("INFO")
    before = repository.get("colours", "")
    path = before.bundle.path.parents[1] / place
    change, undo = changes
    change(path)
    for _ in range(2):
        await repository.poll()
        assert repository.get("colours", "") is before
        assert reason(repository) == told
    assert repository.problems == [told]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == [f"{told} (the loaded versions keep serving)"]  # once, not at every scan
    undo(path)
    await repository.poll()
    assert repository.get("colours", "") is before
    assert (reason(repository), repository.problems) == ("", [])
    assert "readable again" in caplog.messages[-1]


async def test_a_version_that_cannot_be_read_leaves_the_older_one_in_service(
    repository: Repository, write_bundle: Write
) -> None:
    first = repository.get("colours", "").bundle.path
    second = write_bundle(version=2)
    loop(second)
    shutil.rmtree(first)
    await repository.poll()
    assert states(repository) == {1: State.READY}
    assert repository.problems == [f"{LOOP}: colours/2", "no manifest: colours/1"]
    restore(second)
    await repository.poll()
    assert states(repository) == {2: State.READY}


async def test_a_pipe_and_a_manifest_of_any_size_hold_nothing_up(
    repository: Repository, write_bundle: Write
) -> None:
    os.mkfifo((pipe := write_bundle(name="pipe")) / "fifo")
    (pipe / "fifo").rename(pipe / "manifest.json")
    large = write_bundle(name="large") / "manifest.json"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    device = write_bundle(name="zeros") / "manifest.json"
    device.unlink()
    device.symlink_to("/dev/zero")
    write_bundle(name="sound")
    await repository.poll()
    found = {model.name: model.versions[0] for model in repository.models()}
    assert found["pipe"].reason == found["zeros"].reason == "manifest.json: not a plain file"
    assert found["large"].reason == "manifest.json: larger than the limit of 4194304 bytes"
    assert found["sound"].state is found["colours"].state is State.READY


async def test_files_and_unfinished_folders_beside_the_models_are_no_problem(
    repository: Repository, write_bundle: Write, caplog: pytest.LogCaptureFixture
) -> None:
    root = repository.get("colours", "").bundle.path.parents[1]
    (root / "README.md").write_text("models", encoding="utf-8")
    (root / "upload" / "1").mkdir(parents=True)
    (root / "colours" / "2").mkdir()
    (root / "colours" / "notes.txt").touch()
    (root / "colours" / "3").touch()
    await repository.poll()
    assert states(repository) == {1: State.READY}
    assert (repository.problems, caplog.messages) == ([], [])


async def test_no_error_of_one_model_keeps_the_others_from_being_looked_at(
    repository: Repository, write_bundle: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = repository._sync

    async def fail_for_one(model: Model, seen: ModelSighting | None) -> None:
        if model.name == "bad":
            raise LookupError("nobody foresaw this")
        await sync(model, seen)

    monkeypatch.setattr(repository, "_sync", fail_for_one)
    write_bundle(name="bad")
    write_bundle(name="other")
    await repository.poll()
    assert states(repository, "other") == {1: State.READY}


async def test_polls_under_load_lose_no_request(
    repository: Repository, write_bundle: Write
) -> None:
    done = asyncio.Event()
    image = np.full((1, 8, 8, 3), (255, 0, 0), dtype=np.uint8)
    versions: set[int] = set()

    async def ask() -> None:
        while not done.is_set():
            model = repository.get("colours", "")
            with model.in_use():
                versions.add(model.bundle.manifest.version)
                with model.batcher.reserve() as places:
                    result = await model.batcher.submit(places, image, outputs=("logits",))
                assert float(result.outputs["logits"][0, 0]) == 1.25

    callers = [asyncio.create_task(ask()) for _ in range(8)]
    for version in (2, 3, 4):
        write_bundle(version=version)
        await repository.poll()
    done.set()
    await asyncio.gather(*callers)
    assert versions >= {1, 2, 3}
