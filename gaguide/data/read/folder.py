"""Where a reader finds shards: in a folder of this machine, or at an address (`remote`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from gaguide.data.format.manifest import TOKENIZER_FOLDER, Manifest, ShardInfo, read_manifest
from gaguide.data.format.shards import DamagedShardError, Shard, check_size, open_shard, shard_fault
from gaguide.data.read.checksums import Checksums
from gaguide.data.read.order import OPEN_SHARDS
from gaguide.errors import FaultCollector, UserError


class ShardFolder(Protocol):
    """The interface of a folder of shards. Can be pickled."""

    name: str
    """The folder as the user wrote it."""
    manifest: Manifest
    """Its manifest."""

    @property
    def open_limit(self) -> int:
        """Number of shards that a reader may keep open."""

    @property
    def tokenizer_folder(self) -> Path:
        """Folder, on this machine, of the tokenizer that made the shards."""

    def open(self, info: ShardInfo) -> Shard:
        """Map a shard, after fetching it if necessary; `UserError` if it is not what the manifest says."""

    def look_ahead(self, window_shards: int, infos: Iterable[ShardInfo]) -> None:
        """Prefetch these shards, which are needed next in this order, `window_shards` at a time."""

    def check(self, infos: Iterable[ShardInfo]) -> None:
        """Check shards without reading them; one `UserError` names all that are damaged."""

    def raise_damaged(self) -> None:
        """Raise a `UserError` if checks in the background have found damaged shards."""

    def wait_for_checksums(self) -> None:
        """Wait for these checks, then `raise_damaged`."""


class LocalFolder:
    """A folder of shards on a file system of this machine."""

    open_limit = OPEN_SHARDS

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        self.manifest = read_manifest(path)
        self._checksums = Checksums()

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer that made the shards."""
        return self.path / TOKENIZER_FOLDER

    def open(self, info: ShardInfo) -> Shard:
        """Map a shard and start comparing its checksum in the background."""
        try:
            shard = open_shard(self.path / info.file, info, self.manifest.tokenizer_fingerprint)
        except DamagedShardError as error:
            raise UserError(shard_fault(self.name, info.file, str(error))) from None
        self._checksums.start(self.path / info.file, info)
        return shard

    def look_ahead(self, window_shards: int, infos: Iterable[ShardInfo]) -> None:
        """Do nothing: the shards are on this machine."""

    def check(self, infos: Iterable[ShardInfo]) -> None:
        """Compare presence and sizes with the manifest."""
        with FaultCollector() as faults:
            for info in infos:
                try:
                    check_size(self.path / info.file, info)
                except DamagedShardError as error:
                    faults.add(shard_fault(self.name, info.file, str(error)))

    def raise_damaged(self) -> None:
        """Raise a `UserError` if checksums have shown shards to be damaged."""
        damaged = self._checksums.damaged
        if damaged:
            raise UserError([shard_fault(self.name, path.name, problem) for path, problem in damaged.items()])

    def wait_for_checksums(self) -> None:
        """Wait for the checksums of all shards opened so far, then `raise_damaged`."""
        self._checksums.wait()
        self.raise_damaged()


def open_folder(name: Path | str, cache_bytes: int) -> ShardFolder:
    """The folder of shards at a path, or at any address that fsspec knows (`s3://…`, `https://…`)."""
    if "://" not in str(name):
        return LocalFolder(Path(name).expanduser())
    from gaguide.data.read.cache import ShardCache
    from gaguide.data.read.host import host_folder
    from gaguide.data.read.remote import RemoteFolder

    return RemoteFolder(str(name), ShardCache(host_folder() / "shards", cache_bytes))
