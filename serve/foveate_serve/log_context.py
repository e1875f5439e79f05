"""What is known of a call while it is answered: for the lines of the log, and for fair shares."""

from collections.abc import Callable
from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the current call."""

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""The name of the current call's token."""

CLIENT: ContextVar[Callable[[], str]] = ContextVar("client", default=str)
"""Returns the connection of the current call, such as ipv4:127.0.0.1:1234; empty for none."""

FIELDS = "fields"
"""The key of `extra` under which a log call passes further fields: a dict."""
