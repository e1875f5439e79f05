"""Models come, change and go without a request being lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.onnxruntime.runner import OnnxRuntimeRunner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.errors import (
    EngineError,
    InvalidRequestError,
    LoadingError,
    NotFoundError,
    NotReadyError,
)
from foveate_serve.observer import Changes
from foveate_serve.repository import loaded
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State
from foveate_serve.rpc.health import HealthHandler

from ...waiting import until

Write = Callable[..., Path]


@pytest_asyncio.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Repository]:
    (tmp_path / "repository").mkdir()
    repository = Repository(tmp_path / "repository", create_runner, BatchPolicy(lanes=1))
    yield repository
    await repository.close()


def states(repository: Repository, name: str = "colours") -> dict[int, State]:
    (status,) = [status for status in repository.models() if status.name == name]
    return {version.version: version.state for version in status.versions}


def break_bundle(path: Path) -> None:
    (path / "model.onnx").write_bytes(b"\0" * (path / "model.onnx").stat().st_size)


async def red(repository: Repository, version: str = "") -> float:
    model = repository.get("colours", version)
    with model.in_use():
        image = np.full((1, 8, 8, 3), (255, 0, 0), dtype=np.uint8)
        with model.batcher.reserve() as places:
            result = await model.batcher.submit(places, image, outputs=("logits",))
        return float(result.outputs["logits"][0, 0])


async def test_the_newest_version_of_every_model_is_loaded(
    repository: Repository, write_bundle: Write
) -> None:
    for version in (1, 2, 10):
        write_bundle(version=version)
    write_bundle(name="others")
    await repository.open()
    assert states(repository) == {10: State.READY, 2: State.UNLOADED, 1: State.UNLOADED}
    assert [m.name for m in repository.models()] == ["colours", "others"]
    assert repository.models()[0].default_version == 10
    assert repository.get("colours", "").bundle.manifest.version == 10


async def test_what_is_no_model_is_passed_over(repository: Repository, write_bundle: Write) -> None:
    folder = write_bundle().parents[1]
    (folder / "README.txt").write_text("not a model", encoding="utf-8")
    (folder / ".git" / "1").mkdir(parents=True)
    (folder / ".git" / "1" / "manifest.json").touch()
    (folder / "colours" / "latest").mkdir()
    (folder / "empty").mkdir()
    await repository.open()
    assert [m.name for m in repository.models()] == ["colours"]
    assert states(repository) == {1: State.READY}


async def test_an_empty_name_means_the_only_model(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle()
    await repository.open()
    assert repository.get("", "").bundle.manifest.name == "colours"
    write_bundle(name="others")
    await repository.load("others", "")
    with pytest.raises(InvalidRequestError) as raised:
        repository.get("", "")
    assert (raised.value.reason, raised.value.field) == ("MODEL_REQUIRED", "model")


@pytest.mark.parametrize("name", ["nothing", "../colours", "", "colours/1", "x" * 10_000, "\0"])
async def test_unknown_models_are_not_found(
    repository: Repository, write_bundle: Write, name: str
) -> None:
    write_bundle()
    await repository.open()
    for change in (repository.load, repository.reload, repository.unload):
        with pytest.raises(NotFoundError) as raised:
            await change(name, "")
        assert raised.value.reason == "MODEL_NOT_FOUND"
        assert len(raised.value.message) < 200


@pytest.mark.parametrize("version", ["2", "0", "-1", "01", "1.0", "stable", "9" * 5000, "\u0661"])
async def test_unknown_versions_are_not_found(
    repository: Repository, write_bundle: Write, version: str
) -> None:
    write_bundle()
    await repository.open()
    with pytest.raises(NotFoundError) as raised:
        repository.get("colours", version)
    assert raised.value.reason == "VERSION_NOT_FOUND"


async def test_a_broken_model_fails_and_the_others_serve(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle(name="others")
    break_bundle(write_bundle())
    await repository.open()
    assert states(repository) == {1: State.FAILED}
    assert "model.onnx: its SHA-256" in repository.models()[0].versions[0].reason
    assert states(repository, "others") == {1: State.READY}
    with pytest.raises(NotReadyError) as raised:
        repository.get("colours", "")
    assert raised.value.metadata["state"] == "failed"


@pytest.mark.parametrize("error", [KeyError("gain"), MemoryError(), SystemExit(3), StopIteration()])
async def test_whatever_a_load_raises_makes_its_version_fail_and_nothing_else(
    tmp_path: Path, write_bundle: Write, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    write_bundle(name="bad")
    write_bundle(name="good")

    def make(bundle: Bundle) -> Runner:
        if bundle.manifest.name == "bad":
            raise error
        return create_runner(bundle)

    repository = Repository(tmp_path / "repository", make, BatchPolicy(max_batch=1))
    await repository.open()
    assert states(repository, "bad") == {1: State.FAILED}
    assert states(repository, "good") == {1: State.READY}
    reason = repository.models()[0].versions[0].reason
    assert type(error).__name__ in reason
    assert "gain" not in reason
    assert type(error).__name__ in caplog.text
    with pytest.raises(NotReadyError, match="failed to load"):
        await repository.load("bad", "")
    await repository.close()


async def test_a_bundle_too_large_for_a_batch_fails_and_releases_its_engine(
    repository: Repository, write_bundle: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(loaded, "Batcher", no_memory)

    def close(runner: OnnxRuntimeRunner) -> None:
        closed.append(runner)

    monkeypatch.setattr(OnnxRuntimeRunner, "close", close)
    write_bundle()
    await repository.open()
    assert states(repository) == {1: State.FAILED}
    assert len(closed) == 1


async def test_a_bundle_in_a_folder_of_another_name_is_refused(
    repository: Repository, write_bundle: Write
) -> None:
    path = write_bundle()
    path.rename(path.with_name("7"))
    await repository.open()
    assert states(repository) == {7: State.FAILED}
    assert "its folder colours/7" in repository.models()[0].versions[0].reason


async def test_a_model_that_is_being_loaded_is_not_served_yet(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle()
    opening = asyncio.create_task(repository.open())
    while not opening.done():
        # Not known yet, then being loaded.
        with pytest.raises(LoadingError):
            repository.get("colours", "")
        await asyncio.sleep(0)
    await opening
    assert await red(repository) == 1.25


async def test_a_version_is_loaded_beside_another(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle(version=2)
    write_bundle(version=1)
    await repository.open()
    status = await repository.load("colours", "1")
    assert [v.state for v in status.versions] == [State.READY, State.READY]
    assert status.default_version == 2
    assert repository.get("colours", "1").bundle.manifest.version == 1
    loaded = repository.get("colours", "1")
    await repository.load("colours", "1")
    assert repository.get("colours", "1") is loaded


async def test_a_model_that_appears_later_can_be_loaded(
    repository: Repository, write_bundle: Write
) -> None:
    await repository.open()
    write_bundle()
    with pytest.raises(NotFoundError):
        repository.get("colours", "")
    await repository.load("colours", "")
    assert await red(repository) == 1.25


async def test_reload_takes_the_newest_and_retires_the_old(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle(version=1)
    await repository.open()
    write_bundle(version=2)
    status = await repository.reload("colours", "latest")
    assert status.default_version == 2
    assert states(repository) == {2: State.READY, 1: State.UNLOADED}


async def test_reload_rereads_what_serves_where_no_version_is_named(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle(version=1)
    await repository.open()
    before = repository.get("colours", "")
    write_bundle(version=2)
    status = await repository.reload("colours", "")
    assert status.default_version == 1
    assert states(repository) == {2: State.UNLOADED, 1: State.READY}
    assert repository.get("colours", "") is not before


async def test_a_version_with_a_label_is_not_unloaded(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle(version=1)
    write_bundle(version=2)
    await repository.open()
    await repository.set_labels("colours", {"stable": "1"})
    for version in ("1", "stable"):
        with pytest.raises(NotReadyError, match=r"version 1 .* has the label stable") as raised:
            await repository.unload("colours", version)
        assert raised.value.reason == "VERSION_LABELLED"
    assert states(repository) == {2: State.READY, 1: State.READY}
    await repository.set_labels("colours", {"stable": "2"})
    await repository.unload("colours", "1")
    assert states(repository) == {2: State.READY, 1: State.UNLOADED}


async def test_the_names_of_the_models_are_told(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle()
    await repository.open()
    with pytest.raises(NotFoundError, match="no model 'pets'; there are colours"):
        repository.get("pets", "")


async def test_a_server_whose_only_model_is_out_is_not_ready(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle()
    await repository.open(load=False)
    health = HealthHandler(
        repository.models,
        Changes(),
        services=(),
        model_service="models",
        hung=lambda: False,
        has_served=lambda: repository.has_served,
    )
    assert not health.ready
    health.ready = True
    assert health.ready  # it waits for a first load
    await repository.load("colours", "")
    # Nobody has asked for the health while it served.
    await repository.unload("colours", "")
    assert not health.ready


async def test_a_failed_reload_leaves_the_old_one_serving_and_says_so(
    repository: Repository, write_bundle: Write
) -> None:
    path = write_bundle()
    await repository.open()
    break_bundle(path)
    with pytest.raises(NotReadyError, match=r"model\.onnx: its SHA-256") as raised:
        await repository.reload("colours", "")
    assert raised.value.reason == "MODEL_LOAD_FAILED"
    assert str(path.parent) not in raised.value.message
    assert states(repository) == {1: State.READY}
    assert "SHA-256" in repository.models()[0].versions[0].reason
    assert await red(repository) == 1.25


async def test_a_reload_under_load_loses_no_request(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle()
    await repository.open()
    before = repository.get("colours", "")
    done = asyncio.Event()

    async def ask() -> int:
        answers = 0
        while not done.is_set():
            assert await red(repository) == 1.25
            answers += 1
        return answers

    callers = [asyncio.create_task(ask()) for _ in range(8)]
    for _ in range(5):
        await repository.reload("colours", "")
    done.set()
    assert all(await asyncio.gather(*callers))
    assert repository.get("colours", "") is not before


async def test_unload_waits_for_those_who_use_the_model(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle()
    await repository.open()
    model = repository.get("colours", "")
    with model.in_use():
        unloading = asyncio.create_task(repository.unload("colours", ""))
        await until(lambda: states(repository) == {1: State.UNLOADING})
        image = np.zeros((1, 8, 8, 3), dtype=np.uint8)
        with model.batcher.reserve() as places:
            answer = await model.batcher.submit(places, image, outputs=("logits",))
        assert answer.batch_size == 1
        with pytest.raises(NotReadyError):
            repository.get("colours", "")
        assert not unloading.done()
    status = await unloading
    assert [v.state for v in status.versions] == [State.UNLOADED]


async def test_a_caller_who_goes_away_does_not_stop_a_load(
    repository: Repository, write_bundle: Write
) -> None:
    await repository.open()
    write_bundle()
    loading = asyncio.create_task(repository.load("colours", ""))
    await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    status = await repository.load("colours", "")
    assert [v.state for v in status.versions] == [State.READY]


async def test_a_version_that_left_the_disk_is_forgotten_once_unloaded(
    repository: Repository, write_bundle: Write, tmp_path: Path
) -> None:
    write_bundle(version=1)
    path = write_bundle(version=2)
    await repository.open()
    path.rename(tmp_path / "gone")
    await repository.unload("colours", "2")
    await repository.load("colours", "")
    assert states(repository) == {1: State.READY}


async def test_a_version_does_not_serve_while_its_engines_thread_is_down(
    repository: Repository, write_bundle: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle()
    await repository.open()
    runner = repository.get("colours", "").runner

    def end(inputs: object, outputs: object, *, share_cores: bool) -> None:
        raise SystemExit("the thread is to end")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", end)
        with pytest.raises(EngineError):
            await red(repository)
        # It is back in a moment: between two of these looks no timer can fire.
        while states(repository) == {1: State.READY}:  # noqa: ASYNC110 - a thread changes it
            await asyncio.sleep(0)
    assert states(repository) == {1: State.LOADING}
    (model,) = repository.models()
    assert "thread ended" in model.versions[0].reason
    with pytest.raises(LoadingError):
        repository.get("colours", "")
    await until(lambda: states(repository) == {1: State.READY})
    assert repository.models()[0].versions[0].reason == ""
    assert await red(repository) == pytest.approx(1.25)
