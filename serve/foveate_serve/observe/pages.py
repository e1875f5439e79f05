"""The pages of the metrics port: `/`, `/metrics`, `/healthz` and `/readyz`."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from importlib.metadata import version
from typing import Protocol

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from foveate_serve.access import AccessControl, Permission
from foveate_serve.errors import ForbiddenError, ServeError
from foveate_serve.observe.http import Response
from foveate_serve.repository.versions import State
from foveate_serve.settings import Settings

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .8rem .3rem 0; text-align: left;
  vertical-align: top }
td { overflow-wrap: anywhere }
.ready { color: #176d2f } .failed { color: #b00020 } .other { color: #8a5a00 }
code { font-size: .9em }
"""


@dataclass(frozen=True, kw_only=True)
class VersionRow:
    """A row of the status page: one version of one model; `drift` is empty where it is unknown."""

    model: str
    version: int
    state: State
    reason: str
    default: bool
    runner: str
    batching: str
    drift: str = ""


class Source(Protocol):
    """The source of the pages' content."""

    async def is_ready(self) -> bool:
        """Return whether requests are served."""
        ...

    @property
    def is_hung(self) -> bool:
        """Whether an engine hangs, so that only a restart helps."""
        ...

    async def rows(self) -> Sequence[VersionRow]:
        """Return every version known, by model, the newest first."""
        ...

    async def metrics(self) -> Collector:
        """Return the metrics as they are now."""
        ...


class Pages:
    """Responds to the paths. Probes need no token; the rest does where tokens are set."""

    def __init__(self, source: Source, settings: Settings, access: AccessControl | None) -> None:
        self._source = source
        self._settings = settings
        self._access = access

    async def respond(self, path: str, headers: Mapping[str, str]) -> Response:
        """Return the response to one path."""
        if path == "/healthz":
            return self._health()
        if path == "/readyz":
            return await self._readiness()
        if path not in {"/", "/metrics"}:
            return Response(body=b"Not Found\n", status=HTTPStatus.NOT_FOUND)
        if self._access is not None:
            try:
                self._access.check(headers.get("authorization"), Permission.METRICS)
            except ServeError as error:
                return _refusal(error)
        return await (self._status() if path == "/" else self._metrics(headers.get("accept", "")))

    def _health(self) -> Response:
        if not self._source.is_hung:
            return Response(body=b"ok\n")
        return Response(body=b"an engine hangs\n", status=HTTPStatus.SERVICE_UNAVAILABLE)

    async def _readiness(self) -> Response:
        if await self._source.is_ready():
            return Response(body=b"ready\n")
        return Response(body=b"not ready\n", status=HTTPStatus.SERVICE_UNAVAILABLE)

    async def _metrics(self, accept: str) -> Response:
        encode, content_type = choose_encoder(accept)
        metrics = await self._source.metrics()
        # Encoding thousands of lines would block the event loop.
        body = await asyncio.to_thread(encode, metrics)
        return Response(body=body, content_type=content_type)

    async def _status(self) -> Response:
        rows, ready = await self._source.rows(), await self._source.is_ready()
        html = status_page(rows, self._settings, ready=ready)
        return Response(
            body=html.encode(),
            content_type="text/html; charset=utf-8",
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )


def status_page(rows: Sequence[VersionRow], settings: Settings, *, ready: bool) -> str:
    """Return the status page: the models, and the settings without the secrets."""
    models = "".join(_row(row) for row in rows) or '<tr><td colspan="7">none</td></tr>'
    values = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(value)}</td></tr>"
        for name, value in settings.shown().items()
    )
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>foveate serve</title><style>{_STYLE}</style></head>
<body>
<h1>foveate serve {escape(version("foveate-serve"))}:
<span class="{"ready" if ready else "other"}">{"ready" if ready else "not ready"}</span></h1>
<p><a href="/metrics">metrics</a> &middot; <a href="/healthz">healthz</a> &middot;
<a href="/readyz">readyz</a></p>
<h2>Models</h2>
<table>
<tr><th>model</th><th>version</th><th>state</th><th>runs on</th><th>batches</th>
<th>drift (PSI)</th><th>last failure</th></tr>
{models}
</table>
<h2>Settings</h2>
<table>{values}</table>
</body>
</html>
"""


def _row(row: VersionRow) -> str:
    kind = {State.READY: "ready", State.FAILED: "failed"}.get(row.state, "other")
    number = f"{row.version} (default)" if row.default else str(row.version)
    return (
        f"<tr><td>{escape(row.model)}</td><td>{number}</td>"
        f'<td class="{kind}">{row.state.value}</td><td>{escape(row.runner)}</td>'
        f"<td>{escape(row.batching)}</td><td>{escape(row.drift)}</td>"
        f"<td>{escape(row.reason)}</td></tr>\n"
    )


def _refusal(error: ServeError) -> Response:
    body = f"{error.message}\n".encode()
    if isinstance(error, ForbiddenError):
        return Response(body=body, status=HTTPStatus.FORBIDDEN)
    challenge = {"WWW-Authenticate": "Bearer"}
    return Response(body=body, status=HTTPStatus.UNAUTHORIZED, headers=challenge)
