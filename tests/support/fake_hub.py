"""A hub in miniature: one data set of local files at one commit, served over HTTP as the hub serves it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(name: str, files: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve the data set `name` with `files` (path in the repository → local file).

    Yields the address, for HF_ENDPOINT, and the list of paths asked for, which grows as requests come in.
    """
    asked: list[str] = []

    class Handler(_Handler):
        dataset, stored, log = name, files, asked

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    dataset: str
    stored: dict[str, Path]
    log: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.log.append(path)
        api = f"/api/datasets/{self.dataset}"
        if path == api or re.fullmatch(f"{api}/revision/[^/]+", path):
            siblings = [{"rfilename": file} for file in self.stored]
            self._json(
                {"id": self.dataset, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            )
        elif tree := re.fullmatch(f"{api}/tree/{COMMIT}(?:/(.*))?", path):
            self._json(self._listing(tree.group(1) or "", "recursive=true" in query.lower()))
        elif file := re.fullmatch(f"/datasets/{self.dataset}/resolve/{COMMIT}/(.*)", path):
            self._file(file.group(1))
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def log_message(self, *arguments: object) -> None:
        """Nothing on the test's standard error."""

    def _listing(self, folder: str, recursive: bool) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for file, path in sorted(self.stored.items()):
            parent = file.rpartition("/")[0]
            if recursive or parent == folder:
                rows.append({"type": "file", "path": file, "size": path.stat().st_size, "oid": "a" * 40})
            elif not folder and {"type": "directory", "path": parent, "oid": "b" * 40} not in rows:
                rows.append({"type": "directory", "path": parent, "oid": "b" * 40})
        return rows

    def _file(self, name: str) -> None:
        if name not in self.stored:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = self.stored[name].read_bytes()
        headers = {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(200, content, headers)
            return
        first, last = int(asked.group(1)), int(asked.group(2) or len(content) - 1)
        piece = content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(piece) - 1}/{len(content)}"
        self._answer(206, piece, headers)

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
