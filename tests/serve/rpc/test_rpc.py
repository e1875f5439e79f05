"""The protocol's side: errors, conversions, paging and the order of a stream."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from google.rpc.code_pb2 import Code

from foveate.status import ErrorStatus
from foveate.v1.classifier_service_pb2 import ClassifyRequest, ListModelsRequest
from foveate.v1.explanation_pb2 import CamOptions
from foveate_serve import errors
from foveate_serve.classification import CamRequest
from foveate_serve.errors import InvalidRequestError, ServeError, clip, listing, quote
from foveate_serve.repository.versions import ModelStatus
from foveate_serve.rpc import convert
from foveate_serve.rpc.errors import CODES, INTERNAL, status_of
from foveate_serve.rpc.handlers import in_order


def test_every_error_has_a_code() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ServeError) and kind is not ServeError
    }
    assert set(CODES) == kinds


def test_an_error_carries_its_field_and_its_metadata() -> None:
    status = status_of(
        InvalidRequestError("REASON", "a sentence", field="cam.top", metadata={"limit": 3})
    )
    assert (status.code, status.reason, status.message) == (
        Code.INVALID_ARGUMENT,
        "REASON",
        "a sentence",
    )
    assert status.metadata == {"limit": "3"}
    assert [(v.field, v.description) for v in status.field_violations] == [
        ("cam.top", "a sentence")
    ]


def test_an_unforeseen_error_is_logged_and_its_text_kept_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        status = status_of(KeyError("/secret/path"))
    assert status == INTERNAL
    assert "/secret/path" not in status.message
    assert "/secret/path" in caplog.text


def test_a_clients_text_is_quoted_in_ascii_and_cut() -> None:
    assert quote("a\n\u2603") == r"'a\n\u2603'"
    assert len(clip("x" * 10_000)) == 64
    assert len(quote("\U0001f600" * 10_000)) < 700
    assert listing(str(i) for i in range(20)).endswith("15 and 4 more")
    assert listing([]) == "none"


def test_the_largest_message_fits_a_trailer() -> None:
    error = InvalidRequestError(
        "LAYER_NOT_FOUND",
        f"no layer {quote(chr(0x1F600) * 99)}; there are {listing(['x' * 40] * 999)}",
        field="feature_maps[0].layer",
        metadata={"layer": clip("\U0001f600" * 99)},
    )
    # On the wire the details are in base64, and the message stands beside them.
    size = len(status_of(error).to_status().SerializeToString()) * 4 / 3
    assert size + len(error.message) < 8192


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (CamOptions(), CamRequest()),
        (CamOptions(top=0), CamRequest(top=0)),
        (CamOptions(forms=[0, 2]), CamRequest(forms=frozenset({"raw", "heatmap"}))),
        (CamOptions(opacity=0.0, encoding=2), CamRequest(opacity=0.0, encoding="jpeg")),
    ],
)
def test_unset_options_mean_what_the_protocol_says(
    options: CamOptions, expected: CamRequest
) -> None:
    request = convert.to_request(ClassifyRequest(encoded=b"x", cam=options))
    assert request.cam == expected
    assert request.top_k is None


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (ClassifyRequest(), "image"),
        (ClassifyRequest(encoded=b"x", cam=CamOptions(forms=[1, 9])), "cam.forms[1]"),
        (ClassifyRequest(encoded=b"x", cam=CamOptions(encoding=7)), "cam.encoding"),
    ],
)
def test_what_the_protocol_does_not_know_is_refused(message: ClassifyRequest, field: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        convert.to_request(message)
    assert raised.value.field == field


def test_pages_follow_each_other() -> None:
    models = [ModelStatus(name=f"m{i:03}", versions=(), default_version=None) for i in range(120)]
    names: list[str] = []
    token, sizes = "", []
    while True:
        page = convert.page(models, ListModelsRequest(page_token=token))
        names += [model.name for model in page.models]
        sizes.append(len(page.models))
        token = page.next_page_token
        if not token:
            break
    assert sizes == [50, 50, 20]
    assert names == [model.name for model in models]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ListModelsRequest(page_size=-1), "page_size"),
        (ListModelsRequest(page_token="%"), "page_token"),  # noqa: S106 - a page
        (ListModelsRequest(page_token="é"), "page_token"),  # noqa: S106 - a page
    ],
)
def test_bad_pages_are_refused(request_: ListModelsRequest, field: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        convert.page([], request_)
    assert raised.value.field == field


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_results_keep_the_order_and_the_window() -> None:
    running, most = 0, 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(10 - number % 10):
            await asyncio.sleep(0)
        running -= 1
        return number

    results = [number async for number in in_order(numbers(50), work, window=4)]
    assert results == list(range(50))
    assert most == 4


async def test_leaving_a_stream_cancels_its_work() -> None:
    cancelled = []

    async def work(number: int) -> int:
        if number:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(number)
                raise
        return number

    before = asyncio.all_tasks()
    stream = in_order(numbers(3), work, window=8)
    assert await anext(stream) == 0
    following = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    following.cancel()
    await asyncio.wait([following])
    await stream.aclose()
    if left := asyncio.all_tasks() - before:
        await asyncio.wait(left, timeout=10)
    assert asyncio.all_tasks() == before
    assert sorted(cancelled) == [1, 2]


async def test_a_broken_source_breaks_the_stream_after_its_items() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError("gone")

    async def work(number: int) -> int:
        return number

    stream = in_order(broken(), work, window=2)
    assert await anext(stream) == 1
    with pytest.raises(ConnectionError):
        await anext(stream)


def test_statuses_survive_the_way_to_an_item_and_back() -> None:
    assert ErrorStatus.from_item_error(INTERNAL.to_item_error()) == INTERNAL
