"""A hub in miniature that takes uploads: repositories, large files by hash, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.support.http_server import Answers, serving

COMMIT = "f" * 40


@dataclass
class UploadHub:
    """The hub's content, and the requests that it received."""

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

    with serving(Handler) as hub.address:
        yield hub


class _Handler(Answers, BaseHTTPRequestHandler):
    state: UploadHub

    def do_GET(self) -> None:
        name = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", self.path.partition("?")[0])
        if name and name[1] in self.state.repositories:
            siblings = [{"rfilename": path} for path in self.state.files.get(name[1], {})]
            self.answer_json(
                {"id": name[1], "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            )
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        body = self._body()
        digest = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == digest
        self.state.objects[digest] = body
        self.state.sent.append(digest)
        self.answer(200, b"")

    def do_POST(self) -> None:
        path, body = self.path.partition("?")[0], self._body()
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer_json({"files": files})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/.*", path):
            self._commit(found[1], body)
        else:
            self.answer(404, b"")

    def _create(self, asked: dict[str, object]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.state.repositories:
            self.answer_json(
                {"url": f"{self.state.address}/{name}", "error": "You already created this"}, 409
            )
            return
        self.state.repositories[name] = bool(asked.get("private") or asked.get("visibility") == "private")
        self.answer_json({"url": f"{self.state.address}/{name}", "name": name, "id": name})

    def _batch(self, asked: dict[str, list[dict[str, object]]]) -> None:
        objects = []
        for each in asked["objects"]:
            upload = {"href": f"{self.state.address}/store/{each['oid']}"}
            has = each["oid"] in self.state.objects
            objects.append(
                {**each, "authenticated": True, **({} if has else {"actions": {"upload": upload}})}
            )
        self.answer_json({"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def _commit(self, name: str, body: bytes) -> None:
        if self.state.refuse is not None:
            self.answer_json({"error": "no write access"}, self.state.refuse)
            return
        files = self.state.files.setdefault(name, {})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.state.objects[entry["value"]["oid"]]
        self.answer_json({"commitUrl": f"{self.state.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".bin")) else "regular"
