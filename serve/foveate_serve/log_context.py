"""What a call adds to the lines of the log that are written while it is answered."""

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the current call."""

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""The name of the current call's token."""

FIELDS = "fields"
"""The key of `extra` under which a log call passes further fields: a dict."""
