"""A hub in miniature: one data set of local files at one commit, served over HTTP as the hub serves it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.support.http_server import Answers, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(name: str, files: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve the data set `name` with `files` (path in the repository → local file).

    Yields the address, for HF_ENDPOINT, and the list of paths asked for, which grows as requests come in.
    """
    asked: list[str] = []

    class Handler(_Handler):
        dataset, stored, log = name, files, asked

    with serving(Handler) as address:
        yield address, asked


class _Handler(Answers, BaseHTTPRequestHandler):
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
            self.answer_json(
                {"id": self.dataset, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            )
        elif tree := re.fullmatch(f"{api}/tree/{COMMIT}(?:/(.*))?", path):
            self.answer_json(self._listing(tree.group(1) or "", "recursive=true" in query.lower()))
        elif file := re.fullmatch(f"/datasets/{self.dataset}/resolve/{COMMIT}/(.*)", path):
            self._file(file.group(1))
        else:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

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
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = self.stored[name].read_bytes()
        headers = {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(200, content, headers)
            return
        first, last = int(asked.group(1)), int(asked.group(2) or len(content) - 1)
        piece = content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(piece) - 1}/{len(content)}"
        self.answer(206, piece, headers)
