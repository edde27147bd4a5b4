"""A folder of shards at an address (http, s3, gs, hf, file, …), fetched in the order of their use.

The manifest is fetched first. Shards are stored in the host's cache, each fetched by one process, compared
with its checksum and fetched again if the connection fails; a few threads fetch ahead of the reader.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gaguide.data.format.manifest import (
    MANIFEST_FILE,
    TOKENIZER_FOLDER,
    ShardInfo,
    folder_digest,
    parse_manifest,
)
from gaguide.data.format.shards import DamagedShardError, Shard, open_shard, shard_fault
from gaguide.data.read.cache import NoRoomError, ShardCache
from gaguide.data.read.host import host_lock
from gaguide.data.read.order import OPEN_SHARDS
from gaguide.errors import Fault, UserError, first_line
from gaguide.files import hash_file, write_bytes

T = TypeVar("T")

_THREADS = 4
_PAUSE_SECONDS = 0.2
# Retrying does not help against these.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, ImportError)


@dataclass(frozen=True)
class Patience:
    """How often a file is fetched again, and after which pauses."""

    attempts: int = 6
    """Attempts for each file."""
    first_wait: float = 0.5
    """Seconds before the second attempt; doubled for each further one, with jitter."""
    longest_wait: float = 30.0
    """Maximum seconds between two attempts."""
    stall_seconds: float = 60.0
    """Seconds without data after which an HTTP transfer counts as failed."""


PATIENCE = Patience()


class RemoteFolder:
    """Shards at `address`, read through `cache`. Can be pickled; a copy opens its own connections."""

    def __init__(self, address: str, cache: ShardCache, patience: Patience | None = None):
        self.name = address.rstrip("/")
        self.cache, self.patience = cache, patience or PATIENCE
        self._connect()
        text = self._retrying(MANIFEST_FILE, self._read)
        self.manifest = parse_manifest(text.decode("utf-8", errors="replace"), f"{self.name}/{MANIFEST_FILE}")

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer that made the shards, in the host's cache; fetched at first use."""
        # By content: the fingerprint leaves out what has no effect on plain text, such as templates. Older
        # manifests lack the digest, so their address is used instead.
        content = self.manifest.tokenizer_sha256
        key = content or hashlib.sha256(f"{self.name} {self.manifest.fingerprint}".encode()).hexdigest()
        folder = self.cache.folder / f"tokenizer-{key}"
        folder.mkdir(exist_ok=True)
        with host_lock(self.cache.folder / ".tokenizer"):
            missing = [name for name in self.manifest.tokenizer_files if not (folder / name).exists()]
            for name in missing:
                file = f"{TOKENIZER_FOLDER}/{name}"
                write_bytes(folder / name, self._retrying(file, self._read))
            if missing and content and folder_digest(folder) != content:
                for name in self.manifest.tokenizer_files:
                    (folder / name).unlink(missing_ok=True)
                problem = "damaged at its source: its files differ from the manifest (checksum)"
                raise UserError(shard_fault(self.name, TOKENIZER_FOLDER, problem))
        return folder

    @property
    def open_limit(self) -> int:
        """Half of the cache's capacity; the other half is for prefetched shards."""
        return max(1, min(OPEN_SHARDS, self._capacity // 2))

    def open(self, info: ShardInfo) -> Shard:
        """Map a shard, after fetching it if necessary."""
        while (lease := self.cache.lease(info)) is None:
            try:
                self.cache.fetch(info, partial(self._fetch, info))
            except NoRoomError:
                raise UserError(self._too_small("every shard in it is being read")) from None
        try:
            shard = open_shard(self.cache.path(info), info, self.manifest.tokenizer_fingerprint)
        except DamagedShardError as error:
            raise UserError(shard_fault(self.name, info.file, str(error))) from None
        return replace(shard, lease=lease)

    def look_ahead(self, window_shards: int, infos: Iterable[ShardInfo]) -> None:
        """Fetch these shards in the background, in this order."""
        # Ranks of a host may be in two windows, and one more shard needs space to arrive.
        if self._capacity < 2 * window_shards + 1:
            raise UserError(self._too_small(f"a window has {window_shards} shards, and two may be in use"))
        self._ahead.want(infos)

    def check(self, infos: Iterable[ShardInfo]) -> None:
        """Do nothing: shards are checked when they arrive."""

    def raise_damaged(self) -> None:
        """Do nothing: a damaged shard never enters the cache."""

    def wait_for_checksums(self) -> None:
        """Do nothing, as `raise_damaged`."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def _connect(self) -> None:
        import fsspec

        protocol = self.name.split("://")[0]
        options = {}
        self._ahead = _LookAhead(self.cache, self._fetch)
        try:
            if protocol in ("http", "https"):
                from aiohttp import ClientTimeout

                stall = self.patience.stall_seconds
                # No limit on the total time: a large shard over a slow connection takes long.
                timeout = ClientTimeout(total=None, sock_connect=stall, sock_read=stall)
                options = {"client_kwargs": {"timeout": timeout}, "skip_instance_cache": True}
            self._filesystem, self._root = fsspec.core.url_to_fs(self.name, **options)
        except (ImportError, ValueError) as error:
            remedy = "install the package that it asks for, or give a local folder"
            raise UserError.of("data", f"cannot be opened ({error})", remedy, self.name) from None

    def _read(self, path: str) -> bytes:
        return self._filesystem.cat_file(path)

    def _fetch(self, info: ShardInfo, destination: Path) -> None:
        def fetch(path: str) -> None:
            self._filesystem.get_file(path, str(destination))
            size = destination.stat().st_size
            if size != info.bytes:
                raise DamagedShardError(
                    f"damaged at its source: {size} bytes arrived instead of {info.bytes}"
                )
            if hash_file(destination) != info.sha256:
                raise DamagedShardError(
                    "damaged at its source: its bytes differ from the manifest (checksum)"
                )

        self._retrying(info.file, fetch)

    def _retrying(self, file: str, action: Callable[[str], T]) -> T:
        """Return `action(path)` for a file, retried as `patience` says, or raise a `UserError`."""
        from tenacity import (
            Retrying,
            retry_if_not_exception_type,
            stop_after_attempt,
            wait_exponential_jitter,
        )

        patience = self.patience
        tries = Retrying(
            stop=stop_after_attempt(patience.attempts),
            wait=wait_exponential_jitter(
                patience.first_wait, patience.longest_wait, jitter=patience.first_wait
            ),
            retry=retry_if_not_exception_type(_FINAL),
            reraise=True,
        )
        try:
            return tries(action, f"{self._root}/{file}")
        except DamagedShardError as error:
            raise UserError(shard_fault(self.name, file, str(error))) from None
        except Exception as error:  # stores raise errors of their transport
            raise UserError(self._not_fetched(file, error)) from error

    def _not_fetched(self, file: str, error: Exception) -> Fault:
        reason = first_line(error)
        if isinstance(error, FileNotFoundError):
            problem = f"{file} does not exist"
            remedy = "check the address; `gaguide data build` makes such folders"
        elif isinstance(error, _FINAL):
            problem = f"{file} cannot be read ({type(error).__name__}: {reason})"
            remedy = "check the credentials for that store"
        else:
            problem = (
                f"fetching {file} failed {self.patience.attempts} times ({type(error).__name__}: {reason})"
            )
            remedy = "check the connection and the store; the same command resumes where this one stopped"
        return Fault("data", problem, remedy, self.name)

    @property
    def _capacity(self) -> int:
        """Number of shards that fit in the cache."""
        return self.cache.limit_bytes // self._largest

    @property
    def _largest(self) -> int:
        return max(shard.bytes for shards in self.manifest.splits.values() for shard in shards)

    def _too_small(self, why: str) -> Fault:
        problem = f"holds {self._capacity} shards of up to {self._largest:,} bytes: {why}"
        return Fault(
            "data.cache_bytes", problem, "increase it, or use a smaller window", self.cache.limit_bytes
        )


class _LookAhead:
    """Threads that fetch shards into the cache before they are read."""

    def __init__(self, cache: ShardCache, fetch: Callable[[ShardInfo, Path], None]):
        self._cache, self._fetch = cache, fetch
        self._changed = threading.Condition()
        self._wanted: list[ShardInfo] = []
        self._last: frozenset[ShardInfo] = frozenset()
        self._threads: list[threading.Thread] = []

    def want(self, infos: Iterable[ShardInfo]) -> None:
        """Replace the queue: fetch these, in this order."""
        wanted = list(infos)
        for info in wanted:
            self._cache.keep(info)  # so that it is not evicted for another one of these
        with self._changed:
            self._wanted, self._last = wanted, frozenset(wanted)
            self._changed.notify_all()
        while len(self._threads) < _THREADS:
            thread = threading.Thread(target=self._run, daemon=True, name="gaguide-look-ahead")
            self._threads.append(thread)
            thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted)
                info = self._wanted.pop(0)
            try:
                # Without waiting: this thread has other shards to fetch meanwhile.
                here = self._cache.fetch(info, partial(self._fetch, info), wait=False)
            except (UserError, OSError):
                continue  # the reader tries again, and reports the failure
            if not here:
                self._retry_later(info)

    def _retry_later(self, info: ShardInfo) -> None:
        """Queue it again after a pause: another process is fetching it, or nothing can be evicted yet."""
        with self._changed:
            self._changed.wait(_PAUSE_SECONDS)
            if info not in self._wanted and info in self._last:
                self._wanted.append(info)
