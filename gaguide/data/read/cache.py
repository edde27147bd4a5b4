"""A cache of remote shards on this host's local disk, of bounded size, shared by the host's processes.

Files are named by their checksum, so folders that contain the same shard share it. A file is locked by its
readers, or by the process that fetches it, with locks that the kernel releases when their holder ends. The
least recently used file that is not locked is evicted first.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from gaguide.data.format.manifest import ShardInfo
from gaguide.data.read.host import flock, host_lock
from gaguide.files import replacing

_ROOM_SECONDS = 60.0
_POLL_SECONDS = 0.2


class NoRoomError(Exception):
    """Every shard in the cache is being read, and there is no space for another."""


class ShardCache:
    """A folder of at most `limit_bytes` of shards, shared by the processes of a host. Can be pickled."""

    def __init__(self, folder: Path, limit_bytes: int, room_seconds: float = _ROOM_SECONDS):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.limit_bytes, self.room_seconds = folder, limit_bytes, room_seconds

    def path(self, info: ShardInfo) -> Path:
        """Path of a shard after it was fetched."""
        return self.folder / f"{info.sha256}.arrow"

    def lease(self, info: ShardInfo) -> IO[bytes] | None:
        """The shard's file, open and protected from eviction until it is closed; None if it is not cached."""
        path = self.path(info)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        flock(file, fcntl.LOCK_SH)
        if not os.fstat(file.fileno()).st_nlink:  # evicted between the two lines above
            file.close()
            return None
        os.utime(path)
        return file

    def fetch(self, info: ShardInfo, download: Callable[[Path], None], wait: bool = True) -> bool:
        """Let `download` write the shard to the path it is given, unless it is cached; True if it is then.

        With `wait=False`, return False if another process is fetching it or there is no space. With
        `wait=True`, wait for both; `NoRoomError` if there is no space in time. Raises what `download` raises.
        """
        with host_lock(self.folder / f"{info.sha256}.lock", wait) as lock:
            if lock is None:
                return False
            if self.path(info).exists():
                return True
            if not self._reserve(info.bytes, lock, wait):
                return False
            try:
                with replacing(self.path(info)) as temporary:
                    download(temporary)
            finally:
                lock.truncate(0)
        return True

    def keep(self, info: ShardInfo) -> bool:
        """Mark the shard as recently used; False if it is not in the cache."""
        try:
            os.utime(self.path(info))
        except FileNotFoundError:
            return False
        return True

    def _reserve(self, size: int, lock: IO[bytes], wait: bool) -> bool:
        """Make space for `size` bytes, and reserve it by giving the lock file this size."""
        deadline = time.monotonic() + self.room_seconds
        while True:
            with host_lock(self.folder / ".room"):
                if self._make_room(size):
                    lock.truncate(size)
                    return True
            if not wait:
                return False
            if time.monotonic() > deadline:
                raise NoRoomError
            time.sleep(_POLL_SECONDS)

    def _make_room(self, size: int) -> bool:
        found = []
        for path in self.folder.glob("*.arrow"):
            stat = path.stat()
            found.append((stat.st_mtime_ns, path, stat.st_size))
        used = sum(each for _, _, each in found) + self._reserved()
        for _, path, each in sorted(found):
            if used + size <= self.limit_bytes:
                break
            used -= each if _remove_if_idle(path) else 0
        return used + size <= self.limit_bytes

    def _reserved(self) -> int:
        """Bytes reserved by fetches in progress; cleans up after processes that have ended."""
        reserved = 0
        for path in self.folder.glob("*.lock"):
            size = path.stat().st_size
            if not size:
                continue
            with host_lock(path, wait=False) as lock:
                if lock is None:
                    reserved += size
                    continue
                for leftover in self.folder.glob(f".tmp-*-{path.stem}.arrow"):
                    leftover.unlink(missing_ok=True)
                lock.truncate(0)
        return reserved


def _remove_if_idle(path: Path) -> bool:
    """Evict a file unless a process is reading it."""
    with path.open("rb") as file:
        if not flock(file, fcntl.LOCK_EX, wait=False):
            return False
        path.unlink()
    return True
