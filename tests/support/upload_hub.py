"""A hub in miniature that takes uploads: repositories, large files by hash, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "f" * 40


@dataclass
class UploadHub:
    """What the hub has, and what it was asked."""

    address: str = ""
    """For HF_ENDPOINT."""
    repositories: dict[str, bool] = field(default_factory=dict)
    """Name → whether it is private."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository → path → content, as committed."""
    sent: list[str] = field(default_factory=list)
    """SHA-256 of every large file that was received, in order."""
    refuse: int | None = None
    """HTTP status of every answer to a commit; None: commits succeed."""


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """Serve until the block ends."""
    hub = UploadHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: UploadHub

    def log_message(self, *arguments: object) -> None:
        """Nothing on the test's standard error."""

    def do_GET(self) -> None:
        name = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", self.path.partition("?")[0])
        if name and name[1] in self.state.repositories:
            siblings = [{"rfilename": path} for path in self.state.files.get(name[1], {})]
            self._json({"id": name[1], "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        body = self._body()
        digest = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == digest
        self.state.objects[digest] = body
        self.state.sent.append(digest)
        self._answer(200, b"")

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self._body()
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/.*", path):
            self._commit(found[1], body)
        else:
            self._answer(404, b"")

    def _create(self, asked: dict[str, object]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.state.repositories:
            self._json({"url": f"{self.state.address}/{name}", "error": "You already created this"}, 409)
            return
        self.state.repositories[name] = bool(asked.get("private") or asked.get("visibility") == "private")
        self._json({"url": f"{self.state.address}/{name}", "name": name, "id": name})

    def _batch(self, asked: dict[str, list[dict[str, object]]]) -> None:
        objects = []
        for each in asked["objects"]:
            upload = {"href": f"{self.state.address}/store/{each['oid']}"}
            has = each["oid"] in self.state.objects
            objects.append(
                {**each, "authenticated": True, **({} if has else {"actions": {"upload": upload}})}
            )
        self._json({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def _commit(self, name: str, body: bytes) -> None:
        if self.state.refuse is not None:
            self._json({"error": "no write access"}, self.state.refuse)
            return
        files = self.state.files.setdefault(name, {})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.state.objects[entry["value"]["oid"]]
        self._json({"commitUrl": f"{self.state.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _json(self, content: object, code: int = 200, kind: str = "application/json") -> None:
        self._answer(code, json.dumps(content).encode(), {"Content-Type": kind})

    def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".bin")) else "regular"
