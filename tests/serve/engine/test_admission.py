"""What is in flight is bounded for the whole server, and shared by the models."""

from contextlib import ExitStack
from datetime import timedelta

import pytest

from foveate_serve.engine.admission import Admission
from foveate_serve.errors import OverloadedError

RETRY = timedelta(seconds=3)


@pytest.fixture
def admission() -> Admission:
    return Admission(max_pictures=12, max_bytes=1200)


def enter(stack: ExitStack, admission: Admission, model: str, *, size: int = 10) -> None:
    stack.enter_context(admission.admit(model, pictures=1, size=size, retry_delay=lambda: RETRY))


def fill(stack: ExitStack, admission: Admission, model: str, *, size: int = 10) -> int:
    """Enter requests until one is refused; return how many were let in."""
    for count in range(100):
        try:
            enter(stack, admission, model, size=size)
        except OverloadedError:
            return count
    raise AssertionError("nothing was refused")


def test_a_lone_model_may_hold_everything(admission: Admission) -> None:
    with ExitStack() as stack:
        assert fill(stack, admission, "a") == 12
        with pytest.raises(OverloadedError) as raised:
            enter(stack, admission, "a")
    assert raised.value.reason == "TOO_MANY_REQUESTS"
    assert raised.value.metadata == {"limit": "12"}
    assert raised.value.retry_delay == RETRY
    # All of it came back.
    with ExitStack() as stack:
        assert fill(stack, admission, "a") == 12


def test_a_flood_leaves_room_for_other_models(admission: Admission) -> None:
    with ExitStack() as stack:
        enter(stack, admission, "b")
    with ExitStack() as stack:
        assert fill(stack, admission, "a") == 6
        assert fill(stack, admission, "b") == 3
        # One that holds nothing is let in, whatever the others hold.
        assert fill(stack, admission, "c") >= 1


def test_a_model_that_was_never_asked_is_let_in_although_everything_is_held(
    admission: Admission,
) -> None:
    with ExitStack() as stack:
        fill(stack, admission, "a")
        enter(stack, admission, "b")
        # From now on the first one has to share.
        with pytest.raises(OverloadedError, match="shared by the models"):
            enter(stack, admission, "a")


def test_bytes_are_bounded_and_shared_as_well(admission: Admission) -> None:
    with ExitStack() as stack:
        assert fill(stack, admission, "a", size=300) == 4
        with pytest.raises(OverloadedError) as raised:
            enter(stack, admission, "a", size=300)
        assert raised.value.reason == "TOO_MANY_BYTES"
    with ExitStack() as stack:
        enter(stack, admission, "b", size=1)
        assert fill(stack, admission, "a", size=300) == 2


def test_a_lone_request_is_judged_by_its_own_limits(admission: Admission) -> None:
    with ExitStack() as stack:
        enter(stack, admission, "a", size=5000)
        assert fill(stack, admission, "a") == 0


def test_an_error_gives_everything_back(admission: Admission) -> None:
    for _ in range(20):
        with (
            pytest.raises(ValueError, match="of the request"),
            admission.admit("a", pictures=9, size=900, retry_delay=lambda: RETRY),
        ):
            raise ValueError("of the request")
