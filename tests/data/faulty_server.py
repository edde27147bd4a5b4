"""A small object store that fails as real ones do: slow, 500, truncated, disconnected, corrupt, stalled."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.patience import patience


class FaultyServer:
    """Serves the files of `folder`.

    faults: file → what to do wrong with each of its next requests, first to last; always: file → at every
    request; held: file → event to wait for before answering; asked: files in the order they were asked for.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.always: dict[str, str] = {}
        self.held: dict[str, threading.Event] = {}
        self.asked: list[str] = []
        self.ended = threading.Event()
        self.address = ""

    @property
    def counts(self) -> Counter[str]:
        """Number of requests of each file."""
        return Counter(self.asked)

    def fault(self, name: str) -> str | None:
        """The failure to simulate."""
        waiting = self.faults[name]
        return waiting.pop(0) if waiting else self.always.get(name)


@contextmanager
def faulty_server(folder: Path) -> Iterator[FaultyServer]:
    """Serve `folder` on this machine until the block ends."""
    state = FaultyServer(folder)

    class Handler(_Handler):
        store = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}/data/shards"
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: FaultyServer

    def do_HEAD(self) -> None:
        self._headers(200, 0)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/data/shards/")
        self.store.asked.append(name)
        if name in self.store.held:
            self.store.held[name].wait(patience(20))
        path = self.store.folder / name
        if not path.is_file():
            self._headers(404, 0)
            return
        self._send(path.read_bytes(), self.store.fault(name))

    def log_message(self, *arguments: object) -> None:
        """Print nothing to the test's standard error."""

    def _headers(self, code: int, length: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, body: bytes, fault: str | None) -> None:
        half = len(body) // 2
        if fault == "500":
            self._headers(500, 0)
            return
        if fault == "short":  # a whole answer, of half the file
            body = body[:half]
        if fault == "corrupt":
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        self._headers(200, len(body))
        if fault == "slow":
            for start in range(0, len(body), len(body) // 8):
                self.wfile.write(body[start : start + len(body) // 8])
                self.wfile.flush()
                self.store.ended.wait(0.1)
        elif fault in ("truncated", "killed", "stalled"):
            self.wfile.write(body[:half])
            self.wfile.flush()
            if fault == "stalled":
                self.store.ended.wait(patience(20))
            if fault == "killed":  # a reset, not an orderly end
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        else:
            self.wfile.write(body)
