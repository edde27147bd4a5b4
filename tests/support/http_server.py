"""Common parts of small HTTP servers of tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answers(BaseHTTPRequestHandler):
    """Answers with a length, silent on the test's standard error."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Nothing on the test's standard error."""

    def answer_json(self, content: object, code: int = 200, kind: str = "application/json") -> None:
        """Send `content` as JSON."""
        self.answer(code, json.dumps(content).encode(), {"Content-Type": kind})

    def answer(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send `body`, or to HEAD only its length."""
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(handler: type[Answers]) -> Iterator[str]:
    """Serve until the block ends; yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
