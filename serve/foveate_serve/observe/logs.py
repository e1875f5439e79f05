"""The log: lines of text or of JSON, with the id of their request."""

import json
import logging
import sys
import time
from typing import Any, Literal

from foveate_serve.log_context import CALLER, FIELDS, REQUEST_ID
from foveate_serve.settings import Settings


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    Its keys: `time` (UTC, ISO 8601), `level`, `logger`, `message`, then where
    they apply `request_id`, `caller`, `exception` and the fields of the log call.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        if caller := CALLER.get():
            line["caller"] = caller
        line.update(getattr(record, FIELDS, {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """A line for people, with the request's id at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(request)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        request_id = REQUEST_ID.get()
        record.request = f" [{request_id}]" if request_id else ""
        return super().format(record)


_FORMATTERS: dict[Literal["text", "json"], type[logging.Formatter]] = {
    "text": TextFormatter,
    "json": JsonFormatter,
}


def configure_logging(settings: Settings) -> None:
    """Write the log to stderr, in the format and from the level of the settings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[settings.log_format]())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
