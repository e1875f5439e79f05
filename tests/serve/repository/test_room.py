"""Models are loaded by requests, and those used longest ago make room for others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from foveate_runtime.backends.registry import create_runner
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.errors import NotReadyError, OverloadedError
from foveate_serve.repository import repository as module
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State

from ...waiting import until

Write = Callable[..., Path]

NAMES = ("one", "two", "three")


@pytest_asyncio.fixture
async def repository(tmp_path: Path, write_bundle: Write) -> AsyncIterator[Repository]:
    """Three models of one size, and room for two."""
    graphs = [write_bundle(name=name) / "model.onnx" for name in NAMES]
    limit = 2 * max(graph.stat().st_size for graph in graphs) + 1
    repository = Repository(
        tmp_path / "repository", create_runner, BatchPolicy(lanes=1), max_bytes=limit
    )
    yield repository
    await repository.close()


def loaded(repository: Repository) -> set[str]:
    return {model.name for model in repository.serving()}


def states(repository: Repository, name: str) -> dict[int, State]:
    (status,) = [status for status in repository.models() if status.name == name]
    return {version.version: version.state for version in status.versions}


async def test_nothing_is_loaded_before_it_is_asked_for(repository: Repository) -> None:
    await repository.open()
    assert loaded(repository) == set()
    assert all(states(repository, name) == {1: State.ON_DEMAND} for name in NAMES)
    assert all(model.default_version == 1 for model in repository.models())
    assert (await repository.obtain("one", "")).name == "one"
    assert loaded(repository) == {"one"}


async def test_the_model_used_longest_ago_makes_room(repository: Repository) -> None:
    await repository.open()
    for name in ("one", "two", "one", "three"):
        await repository.obtain(name, "")
    assert loaded(repository) == {"one", "three"}
    assert states(repository, "two") == {1: State.ON_DEMAND}
    assert (await repository.obtain("two", "")).name == "two"
    assert loaded(repository) == {"two", "three"}


async def test_a_model_in_use_stays(repository: Repository) -> None:
    await repository.open()
    one = await repository.obtain("one", "")
    with one.in_use():
        await repository.obtain("two", "")
        await repository.obtain("three", "")
        assert loaded(repository) == {"one", "three"}


async def test_a_load_waits_until_a_model_is_free(repository: Repository) -> None:
    await repository.open()
    one, two = await repository.obtain("one", ""), await repository.obtain("two", "")
    with two.in_use():
        with one.in_use():
            waiting = asyncio.create_task(repository.obtain("three", ""))
            await until(lambda: not waiting.done() and "three" not in loaded(repository))
        assert (await waiting).name == "three"
        assert loaded(repository) == {"two", "three"}


async def test_where_all_stay_in_use_the_request_is_refused_and_a_later_one_answered(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROOM_SECONDS", 0.05)
    await repository.open()
    one, two = await repository.obtain("one", ""), await repository.obtain("two", "")
    with one.in_use(), two.in_use():
        with pytest.raises(OverloadedError, match="requests use the models"):
            await repository.obtain("three", "")
        assert loaded(repository) == {"one", "two"}
    assert states(repository, "three") == {1: State.ON_DEMAND}
    assert (await repository.obtain("three", "")).name == "three"


async def test_requests_that_come_together_load_a_model_once(repository: Repository) -> None:
    await repository.open()
    models = await asyncio.gather(*(repository.obtain("one", "") for _ in range(5)))
    assert len(set(map(id, models))) == 1


async def test_the_deadline_ends_the_wait_and_not_the_load(repository: Repository) -> None:
    await repository.open()
    with pytest.raises(TimeoutError):
        await repository.obtain("one", "", deadline=0.0)
    await until(lambda: loaded(repository) == {"one"})


async def test_a_graph_above_the_limit_is_refused(tmp_path: Path, write_bundle: Write) -> None:
    write_bundle()
    repository = Repository(
        tmp_path / "repository", create_runner, BatchPolicy(lanes=1), max_bytes=10
    )
    await repository.open()
    with pytest.raises(NotReadyError, match=r"the limit .* is 10 \(max_model_bytes\)"):
        await repository.obtain("colours", "")
    await repository.close()


async def test_what_is_read_again_serves_where_there_is_no_room_for_it_twice(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROOM_SECONDS", 0.05)
    await repository.open()
    one, two = await repository.obtain("one", ""), await repository.obtain("two", "")
    with two.in_use(), pytest.raises(OverloadedError, match="requests use the models"):
        await repository.reload("one", "")
    assert repository.get("one", "") is one
    reloaded = await repository.reload("one", "")
    assert [version.state for version in reloaded.versions] == [State.READY]
    assert loaded(repository) == {"one"}


async def test_a_new_version_for_which_there_is_no_room_is_tried_again_by_the_next_poll(
    repository: Repository, write_bundle: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROOM_SECONDS", 0.05)
    await repository.open()
    one, two = await repository.obtain("one", ""), await repository.obtain("two", "")
    write_bundle(name="one", version=2)
    with one.in_use(), two.in_use():
        await repository.poll()
        assert repository.get("one", "") is one
    await repository.poll()
    assert repository.get("one", "").version == "2"


async def test_the_version_before_answers_until_the_newest_has_loaded(
    repository: Repository, write_bundle: Write
) -> None:
    await repository.open()
    await repository.obtain("one", "")
    broken = write_bundle(name="one", version=2) / "model.onnx"
    broken.write_bytes(b"\0" * broken.stat().st_size)
    await repository.poll()
    assert states(repository, "one") == {2: State.FAILED, 1: State.READY}
    assert (await repository.obtain("one", "")).version == "1"


async def test_a_new_version_of_a_model_that_is_not_loaded_waits_for_a_request(
    repository: Repository, write_bundle: Write
) -> None:
    await repository.open()
    write_bundle(name="one", version=2)
    await repository.poll()
    assert states(repository, "one") == {2: State.ON_DEMAND, 1: State.ON_DEMAND}
    assert (await repository.obtain("one", "")).version == "2"
    await repository.poll()
    assert states(repository, "one") == {2: State.READY, 1: State.UNLOADED}


async def test_what_a_client_unloads_stays_unloaded(repository: Repository) -> None:
    await repository.open()
    await repository.obtain("one", "")
    await repository.unload("one", "")
    with pytest.raises(NotReadyError, match="unloaded"):
        await repository.obtain("one", "")
    assert (await repository.obtain("two", "")).name == "two"
