"""Checksums of shards in the background of training: each once per host, starting at its first use.

Reading a shard's bytes for its checksum also brings them into memory before they are wanted.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from queue import SimpleQueue

from gaguide.data.format.manifest import ShardInfo
from gaguide.data.read.host import host_lock, node_folder
from gaguide.files import hash_file


class Checksums:
    """Compares files with their manifest in a thread of its own. Pickles as a new, empty one."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Path, ShardInfo]] = SimpleQueue()
        self._idle = threading.Condition()
        self._open = 0
        self._damaged: dict[Path, str] = {}
        self._thread: threading.Thread | None = None

    def start(self, path: Path, info: ShardInfo) -> None:
        """Begin to compare `path`; `damaged` will tell."""
        with self._idle:
            self._open += 1
            if self._thread is None:
                node_folder()  # what is wrong with it is told here, not in the thread
                # A daemon: a program that ends doesn't wait for it.
                self._thread = threading.Thread(target=self._run, daemon=True, name="gaguide-checksums")
                self._thread.start()
        self._waiting.put((path, info))

    @property
    def damaged(self) -> dict[Path, str]:
        """Files found damaged so far, and in what."""
        return dict(self._damaged)

    def wait(self) -> None:
        """Until everything begun has been compared."""
        with self._idle:
            self._idle.wait_for(lambda: self._open == 0)

    def _run(self) -> None:
        while True:
            path, info = self._waiting.get()
            try:
                if not matches_once(path, info.sha256):
                    self._damaged[path] = "damaged: its bytes differ from those that were written (checksum)"
            except OSError as error:
                self._damaged[path] = f"damaged: reading it failed ({error.strerror})"
            finally:
                with self._idle:
                    self._open -= 1
                    self._idle.notify_all()

    def __reduce__(self) -> tuple[type[Checksums], tuple[()]]:
        return Checksums, ()


def matches_once(path: Path, sha256: str) -> bool:
    """Whether a file has this SHA-256; a file that had it is not read again on this host until it changes."""
    stat = path.stat()
    identity = f"{path.resolve()} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {sha256}"
    folder = node_folder() / "checked"
    folder.mkdir(exist_ok=True)
    marker = folder / hashlib.sha256(identity.encode()).hexdigest()
    if marker.exists():
        return True
    # One file at a time on a host: ranks that begin together find the first one's markers.
    with host_lock(folder / ".lock"):
        if not marker.exists():
            if hash_file(path) != sha256:
                return False
            marker.touch()
    return True
