"""A hub for one repository of models, in memory: the calls that the Hub's client makes."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_the-right-token"  # noqa: S105 - of this server alone


@dataclass
class Hub:
    """The files of each commit, the last of which is `main`; `url` goes into HF_ENDPOINT."""

    url: str = ""
    commits: list[dict[str, bytes]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return f"{len(self.commits):040x}"

    def files(self, revision: str) -> dict[str, bytes]:
        number = len(self.commits) if revision == "main" else int(revision, 16)
        return self.commits[number - 1] if number else {}


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Answer on a port of this machine until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        self.state.requests.append(format % args)

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self._answer(200, {"url": f"{self.state.url}/owner/name"})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            files = [{"path": each["path"], **modes} for each in json.loads(body)["files"]]
            self._answer(200, {"files": files})
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._answer(404, {"error": "Not found"})

    def _commit(self, body: bytes) -> None:
        files = dict(self.state.files("main"))
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "deletedFile":
                del files[item["value"]["path"]]
        self.state.commits.append(files)
        url = f"{self.state.url}/owner/name/commit/{self.state.head}"
        self._answer(200, {"success": True, "commitOid": self.state.head, "commitUrl": url})

    def _get(self) -> None:
        path = unquote(self.path.partition("?")[0])
        state = self.state
        if found := re.fullmatch(r"/owner/name/resolve/([^/]+)/(.+)", path):
            content = state.files(found[1]).get(found[2])
            if content is None:
                self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                return
            etag = hashlib.sha256(content).hexdigest()
            self._answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": state.head})
        elif found := re.fullmatch(r"/api/models/owner/name/tree/([^/]+)", path):
            self._answer(
                200,
                [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(content),
                        "oid": hashlib.sha256(content).hexdigest()[:40],
                    }
                    for name, content in state.files(found[1]).items()
                ],
            )
        elif re.fullmatch(r"/api/models/owner/name(/revision/[^/]+)?", path):
            siblings = [{"rfilename": name} for name in state.files("main")]
            self._answer(200, {"id": "owner/name", "sha": state.head, "siblings": siblings})
        else:
            self._answer(404, {"error": "Not found"}, {"X-Error-Code": "RepoNotFound"})

    def _answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
