"""The priority of a request: from its message, or from its call's metadata."""

from contextvars import ContextVar

from foveate_serve.errors import InvalidRequestError, quote

PRIORITY_KEY = "x-priority"
"""The metadata key of a call's priority, for clients that cannot set a request's own."""

CALL_PRIORITY: ContextVar[str] = ContextVar("call_priority", default="")
"""The value of that key in the current call."""

_DIGITS = 9


def priority_of(own: int, *, field: str) -> int:
    """Return a request's priority, 1 the highest, 0 for the model's default.

    Where its `own` is 0, the call's counts. Raises InvalidRequestError, on
    `field` or on the metadata.
    """
    if own < 0:
        raise _out_of_range(str(own), field)
    given = CALL_PRIORITY.get()
    if own or not given:
        return own
    if not (given.isascii() and given.isdigit() and len(given) <= _DIGITS):
        raise _out_of_range(quote(given), f"metadata[{PRIORITY_KEY}]")
    return int(given)


def _out_of_range(given: str, field: str) -> InvalidRequestError:
    return InvalidRequestError(
        "PRIORITY_OUT_OF_RANGE",
        f"priority is {given}; the limit is 0 or more",
        field=field,
        metadata={"minimum": 0},
    )
