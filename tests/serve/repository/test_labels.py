"""Labels stand for versions: a request names one, and an operator moves it without a restart."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from foveate_runtime.backends.registry import create_runner
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.errors import InvalidRequestError, NotFoundError, NotReadyError
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State

Write = Callable[..., Path]


@pytest_asyncio.fixture
async def repository(tmp_path: Path, write_bundle: Write) -> AsyncIterator[Repository]:
    """Open versions 1 to 4, of which 2 is stable and 3 a canary."""
    for version in (1, 2, 3, 4):
        write_bundle(version=version)
    labels = {"colours": {"stable": 2, "canary": 3}, "absent": {"stable": 1}}
    repository = Repository(
        tmp_path / "repository", create_runner, BatchPolicy(max_batch=1), labels=labels
    )
    await repository.open()
    yield repository
    await repository.close()


def answering(repository: Repository, version: str) -> int:
    return repository.get("colours", version).bundle.manifest.version


def serving(repository: Repository) -> set[int]:
    (status,) = repository.models()
    return {version.version for version in status.versions if version.state is State.READY}


async def test_the_newest_and_the_labelled_versions_serve(repository: Repository) -> None:
    assert serving(repository) == {4, 3, 2}
    (status,) = repository.models()
    assert (status.labels, status.default_version) == ({"stable": 2, "canary": 3}, 2)


@pytest.mark.parametrize(
    ("version", "answers"), [("", 2), ("stable", 2), ("canary", 3), ("latest", 4), ("3", 3)]
)
async def test_a_request_names_a_number_a_label_or_the_latest(
    repository: Repository, version: str, answers: int
) -> None:
    assert answering(repository, version) == answers


async def test_labels_move_at_once_and_bring_their_versions(repository: Repository) -> None:
    status = await repository.set_labels("colours", {"stable": "3", "old": "1"})
    assert status.labels == {"stable": 3, "old": 1}
    assert [answering(repository, name) for name in ("", "stable", "old")] == [3, 3, 1]
    with pytest.raises(NotFoundError, match="no version 'canary'"):
        repository.get("colours", "canary")


async def test_labels_stay_where_a_version_cannot_be_loaded(
    repository: Repository, write_bundle: Write
) -> None:
    (write_bundle(version=5) / "labels.txt").unlink()
    with pytest.raises(NotReadyError, match=r"labels\.txt: no such file"):
        await repository.set_labels("colours", {"stable": "5"})
    with pytest.raises(NotFoundError, match="no version '9'"):
        await repository.set_labels("colours", {"stable": "9"})
    assert answering(repository, "stable") == 2


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"latest": "1"}, "LABEL_INVALID"),
        ({"7": "1"}, "LABEL_INVALID"),
        ({"Stable": "1"}, "LABEL_INVALID"),
        ({"x" * 64: "1"}, "LABEL_INVALID"),
        ({"stable": "canary"}, "VERSION_INVALID"),
        ({"stable": ""}, "VERSION_INVALID"),
    ],
)
async def test_bad_labels_are_refused(
    repository: Repository, labels: dict[str, str], reason: str
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await repository.set_labels("colours", labels)
    assert (raised.value.reason, raised.value.field) == (reason, "version_labels")
    assert answering(repository, "") == 2


async def test_without_its_stable_version_a_model_has_no_default(repository: Repository) -> None:
    await repository.unload("colours", "")
    await repository.load("colours", "4")
    assert repository.models()[0].default_version is None
    with pytest.raises(NotReadyError, match="version 2 of the model 'colours' is unloaded"):
        repository.get("colours", "")
    assert answering(repository, "latest") == 4


async def test_a_reload_retires_the_latest_and_no_labelled_version(
    repository: Repository, write_bundle: Write
) -> None:
    write_bundle(version=5)
    await repository.reload("colours", "latest")
    assert serving(repository) == {5, 3, 2}
    assert answering(repository, "") == 2
