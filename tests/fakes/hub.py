"""A hub on this machine: the few answers that downloading a model needs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(slots=True)
class FakeHub:
    """`repositories`: id -> file name -> content. `gated`: ids whose files need `token`."""

    repositories: Mapping[str, Mapping[str, bytes]]
    gated: frozenset[str] = frozenset()
    token: str = "good-token"
    fetched: list[str] = field(default_factory=list)  # files whose content was sent
    url: str = ""

    def answer(
        self, method: str, path: str, authorization: str
    ) -> tuple[int, dict[str, str], bytes]:
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._describe("/".join(parts[2:4]), parts[4:])
        model, name = "/".join(parts[:2]), "/".join(parts[4:])
        files = self.repositories.get(model)
        if files is None or name not in files:
            return 404, {"X-Error-Code": "RepoNotFound" if files is None else "EntryNotFound"}, b""
        if model in self.gated and authorization != f"Bearer {self.token}":
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        content = files[name]
        if method == "GET":
            self.fetched.append(name)
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content

    def _describe(self, model: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        files = self.repositories.get(model)
        if files is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
        described = {"id": model, "sha": COMMIT, "siblings": siblings, "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(described).encode()


@contextlib.contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorization = self.headers.get("Authorization", "")
            status, headers, body = hub.answer(self.command, self.path, authorization)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
