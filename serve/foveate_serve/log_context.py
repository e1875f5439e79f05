"""What a call adds to the lines of the log that are written while it is answered."""

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the call that is being answered."""

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""The name of the token that the call carried."""

FIELDS = "fields"
"""The key of `extra` under which a log call passes fields of its own: a dict."""
