"""A folder of shards as blocks are read from it: on this machine, or (`remote`) at an address elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from gaguide.data.format.manifest import TOKENIZER_FOLDER, Manifest, ShardInfo, read_manifest
from gaguide.data.format.shards import DamagedShardError, Shard, check_size, open_shard, shard_fault
from gaguide.data.read.checksums import Checksums
from gaguide.errors import UserError

# The order reads a window of 8 shards at a time; two epochs may meet in a batch.
_OPEN_SHARDS = 32


class ShardFolder(Protocol):
    """name: as the user wrote it. Pickles."""

    name: str
    manifest: Manifest

    @property
    def open_limit(self) -> int:
        """Shards that a reader may keep open at a time."""

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer that made the shards, on this machine."""

    def open(self, info: ShardInfo) -> Shard:
        """Map a shard, once it is there; `UserError` where it is not what the manifest says."""

    def look_ahead(self, window_shards: int, infos: Iterable[ShardInfo]) -> None:
        """These shards are needed next, in this order; `window_shards` of them at a time."""

    def check(self, infos: Iterable[ShardInfo]) -> None:
        """What can be said of shards without reading them; one `UserError` names all that are not right."""

    def raise_damaged(self) -> None:
        """`UserError` for shards that checks in the background have found damaged."""

    def finish_checks(self) -> None:
        """Wait for these checks, then `raise_damaged`."""


class LocalFolder:
    """A folder of shards on a disk of this machine, or on a file system that it has mounted."""

    open_limit = _OPEN_SHARDS

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        self.manifest = read_manifest(path)
        self._checksums = Checksums()

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer that made the shards."""
        return self.path / TOKENIZER_FOLDER

    def open(self, info: ShardInfo) -> Shard:
        """Map a shard and begin to compare its checksum."""
        try:
            shard = open_shard(self.path / info.file, info, self.manifest.tokenizer_fingerprint)
        except DamagedShardError as error:
            raise UserError(shard_fault(self.name, info.file, str(error))) from None
        self._checksums.start(self.path / info.file, info)
        return shard

    def look_ahead(self, window_shards: int, infos: Iterable[ShardInfo]) -> None:
        """All shards are here."""

    def check(self, infos: Iterable[ShardInfo]) -> None:
        """Compare presence and sizes with the manifest."""
        faults = []
        for info in infos:
            try:
                check_size(self.path / info.file, info)
            except DamagedShardError as error:
                faults.append(shard_fault(self.name, info.file, str(error)))
        if faults:
            raise UserError(faults)

    def raise_damaged(self) -> None:
        """`UserError` for shards that their checksums have shown to be damaged so far."""
        damaged = self._checksums.damaged
        if damaged:
            raise UserError([shard_fault(self.name, path.name, what) for path, what in damaged.items()])

    def finish_checks(self) -> None:
        """Wait for the checksums of all shards opened so far, then `raise_damaged`."""
        self._checksums.wait()
        self.raise_damaged()


def open_folder(name: Path | str, cache_bytes: int) -> ShardFolder:
    """The folder of shards at a path, or at any address that fsspec knows (`s3://…`, `https://…`)."""
    if "://" not in str(name):
        return LocalFolder(Path(name))
    from gaguide.data.read.cache import ShardCache
    from gaguide.data.read.host import node_folder
    from gaguide.data.read.remote import RemoteFolder

    return RemoteFolder(str(name), ShardCache(node_folder() / "shards", cache_bytes))
