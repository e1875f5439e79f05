"""The URLs of places where bundles are kept."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

BUCKETS = ("s3", "gs", "az", "file")
HUB = "hf"
REGISTRY = "oci"
SCHEMES = (*BUCKETS, HUB, REGISTRY)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@|(?<=[?&])[^\s\"'<>]+")


class LocationError(ValueError):
    """A URL that names no place; the message holds no credentials."""


def is_url(text: str) -> bool:
    """Return whether a repository is named by a URL, and not by a folder's path."""
    return _URL.match(text) is not None


def redacted(text: str) -> str:
    """Return a text without the credentials and the queries of the URLs in it."""
    return _CREDENTIALS.sub(lambda found: "***@" if found[0].endswith("@") else "***", text)


@dataclass(frozen=True)
class Location:
    """A place: its scheme, and what stands behind it. It never holds credentials."""

    scheme: str
    place: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URL.

        Raises:
            LocationError: the scheme is unknown, the URL holds credentials, a query or
                characters that cannot be printed, or its path leaves the place.
        """
        shown = redacted(text)
        if _UNPRINTABLE.search(text):
            raise LocationError(f"{shown!r}: a URL has no spaces and no control characters")
        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise LocationError(f"{shown}: {error}") from None
        if parts.scheme not in SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise LocationError(f"{shown}: there is no scheme {parts.scheme!r}; there are {known}")
        if "@" in parts.netloc:
            raise LocationError(f"{shown}: a URL holds no credentials; the environment does")
        if parts.query or parts.fragment:
            raise LocationError(f"{shown}: a URL of a repository has neither ? nor #")
        path = parts.path.strip("/")
        if any(part in {"", ".", ".."} for part in path.split("/") if path):
            raise LocationError(f"{shown}: its path holds an empty part, . or ..")
        if parts.scheme == "file":
            if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
                raise LocationError(f"{shown}: it must be file:///, and the path of a folder")
            return cls("file", f"/{path}")
        if not parts.netloc:
            raise LocationError(f"{shown}: it names no place behind {parts.scheme}://")
        return cls(parts.scheme, f"{parts.netloc}/{path}" if path else parts.netloc)

    @property
    def folder(self) -> Path:
        """The folder of a `file` location."""
        return Path(unquote(self.place))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}"
