"""Compare checksums of shards in the background of training, each once per host, from its first use on.

Reading a shard for its checksum also brings it into the page cache before it is needed.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from queue import SimpleQueue

from gaguide.data.format.manifest import ShardInfo
from gaguide.data.read.host import host_folder, host_lock
from gaguide.files import hash_file


class Checksums:
    """Compares files with their manifest in a background thread. Unpickles as a new, empty object."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Path, ShardInfo]] = SimpleQueue()
        self._idle = threading.Condition()
        self._open = 0
        self._damaged: dict[Path, str] = {}
        self._thread: threading.Thread | None = None

    def start(self, path: Path, info: ShardInfo) -> None:
        """Start comparing `path`; the result appears in `damaged`."""
        with self._idle:
            self._open += 1
            if self._thread is None:
                host_folder()  # its faults are raised here, not in the thread
                # A daemon, so that the program's end does not wait for it.
                self._thread = threading.Thread(target=self._run, daemon=True, name="gaguide-checksums")
                self._thread.start()
        self._waiting.put((path, info))

    @property
    def damaged(self) -> dict[Path, str]:
        """Files found damaged so far, and their faults."""
        return dict(self._damaged)

    def wait(self) -> None:
        """Wait until every file that was started has been compared."""
        with self._idle:
            self._idle.wait_for(lambda: self._open == 0)

    def _run(self) -> None:
        while True:
            path, info = self._waiting.get()
            try:
                if not has_checksum(path, info.sha256):
                    self._damaged[path] = "damaged: its bytes differ from those that were written (checksum)"
            except OSError as error:
                self._damaged[path] = f"damaged: cannot be read ({error.strerror})"
            finally:
                with self._idle:
                    self._open -= 1
                    self._idle.notify_all()

    def __reduce__(self) -> tuple[type[Checksums], tuple[()]]:
        return Checksums, ()


def has_checksum(path: Path, sha256: str) -> bool:
    """Whether a file has this SHA-256. A file that had it is not read again on this host until it changes."""
    stat = path.stat()
    # The time of the last change (ctime) cannot be set, so a copy that keeps a file's time is read again.
    identity = (
        f"{path.resolve()} {stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} "
        f"{sha256}"
    )
    folder = host_folder() / "checked"
    folder.mkdir(exist_ok=True)
    marker = folder / hashlib.sha256(identity.encode()).hexdigest()
    if marker.exists():
        return True
    # One file at a time on a host, so that ranks that start together find the first rank's markers.
    with host_lock(folder / ".lock"):
        if not marker.exists():
            if hash_file(path) != sha256:
                return False
            marker.touch()
    return True
