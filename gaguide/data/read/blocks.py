"""Blocks of T consecutive tokens, cut out of a folder of shards at read time without copying the shards.

Each shard is cut from its start; a remainder of fewer than T tokens at its end belongs to no block
(with shards of 50 million tokens and T = 1,024 that is at most 0.002% of them).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gaguide.data.format.manifest import Manifest, ShardInfo
from gaguide.data.format.shards import Shard, shard_fault
from gaguide.data.read.folder import open_folder
from gaguide.data.read.order import BlockOrder
from gaguide.errors import Fault, UserError, suggestion

CACHE_BYTES = 20_000_000_000
_OF_THIS_PROCESS = ("_open", "_opening", "_ahead")


class Blocks(Protocol):
    """What training needs of its blocks: `BlockStore`, `MixedStore` and `GrowingStore` have it."""

    block_length: int

    def __len__(self) -> int:
        """Blocks in an epoch."""

    def read(self, block_ids: np.ndarray) -> np.ndarray:
        """Token ids [n, T] int64 of the blocks `block_ids` [n]; IndexError outside [0, len)."""

    def document_ids(self, block_ids: np.ndarray) -> np.ndarray:
        """Which document of its block each token belongs to, [n, T] int32, counted from 0 in every block.

        A document that began in an earlier block has id 0 in this one.
        """

    def positions(self, block_ids: np.ndarray) -> np.ndarray:
        """Each token's place in its document, as far as that lies in the block, [n, T] int64 from 0."""

    def look_ahead(self, order: Any, position: int) -> None:
        """Say that the reader stands at `position` of `order`, so that what comes next is fetched in time."""

    def finish_checks(self) -> None:
        """Wait for the checksums of all shards used so far; `UserError` names the damaged ones."""


class CutShards:
    """Blocks of T tokens cut out of shards that a subclass finds: `_locate` and `_shard`."""

    block_length: int

    def _locate(self, block_ids: np.ndarray) -> tuple[list[int], list[int]]:
        """The shard of each block, and the token of it where the block begins."""
        raise NotImplementedError

    def _shard(self, index: int) -> Shard:
        raise NotImplementedError

    def read(self, block_ids: np.ndarray) -> np.ndarray:
        """Token ids [n, T] int64 of the blocks `block_ids` [n]; IndexError outside [0, len)."""
        shard_of, first = self._locate(block_ids)
        ids_BT = np.empty((len(first), self.block_length), np.int64)
        for row, (index, start) in enumerate(zip(shard_of, first)):
            ids_BT[row] = self._shard(index).tokens[start : start + self.block_length]
        return ids_BT

    def look_ahead(self, order: Any, position: int) -> None:
        """Nothing to fetch where the shards are on this machine."""

    def finish_checks(self) -> None:
        """Nothing to compare where this run wrote the shards itself."""

    def document_starts(self, block_id: int) -> np.ndarray:
        """Places [k] int64 in [0, T) of block `block_id` where a document begins, ascending."""
        shard_of, first = self._locate(np.array([block_id]))
        return self._document_starts(shard_of[0], first[0])

    def document_ids(self, block_ids: np.ndarray) -> np.ndarray:
        """As `Blocks.document_ids`."""
        begins_BT = self._begins(block_ids)
        begins_BT[:, :1] = False
        return begins_BT.cumsum(axis=1, dtype=np.int32)

    def positions(self, block_ids: np.ndarray) -> np.ndarray:
        """As `Blocks.positions`."""
        places_T = np.arange(self.block_length, dtype=np.int64)
        return places_T - np.maximum.accumulate(np.where(self._begins(block_ids), places_T, 0), axis=1)

    def _begins(self, block_ids: np.ndarray) -> np.ndarray:
        """Whether a document begins at each token, [n, T] bool."""
        shard_of, first = self._locate(block_ids)
        begins_BT = np.zeros((len(first), self.block_length), bool)
        for row, (index, start) in enumerate(zip(shard_of, first)):
            begins_BT[row, self._document_starts(index, start)] = True
        return begins_BT

    def _document_starts(self, index: int, first: int) -> np.ndarray:
        offsets = self._shard(index).offsets
        low, high = np.searchsorted(offsets, [first, first + self.block_length])
        # The last offset is the shard's end, where no document begins.
        return offsets[low : min(int(high), len(offsets) - 1)].astype(np.int64) - first


def find_blocks(block_ids: np.ndarray, starts: np.ndarray, block_length: int) -> tuple[list[int], list[int]]:
    """The shard of each block and the token of it where the block begins.

    starts: [shards + 1] the first global block id of every shard, and the end. IndexError outside it.
    """
    block_ids = np.asarray(block_ids, np.int64)
    if block_ids.size and not (block_ids.min() >= 0 and block_ids.max() < starts[-1]):
        raise IndexError(f"block ids must lie in [0, {starts[-1]})")
    shard_of = np.searchsorted(starts, block_ids, side="right") - 1
    return shard_of.tolist(), ((block_ids - starts[shard_of]) * block_length).tolist()


class BlockStore(CutShards):
    """Random access to the blocks of one split.

    shard_blocks: blocks of each shard; global block ids count through them in shard order.
    Opening compares every shard's presence and size with the manifest. A shard is mapped at first use: its
    structure and the tokenizer are checked then, the ids at every read, and its checksum in the background,
    once on each host; the next `read` tells of what that finds. May be pickled, and read from several threads
    or processes.

    folder: a path, or any address that fsspec knows (`s3://…`, `https://…`). From an address shards are
    fetched when they are read, or before that by `look_ahead`, into a cache of at most `cache_bytes` on this
    host's disk, and compared with their checksums as they come.
    """

    def __init__(self, folder: Path | str, split: str, block_length: int, cache_bytes: int = CACHE_BYTES):
        self.folder = folder if "://" in str(folder) else Path(folder)
        self.split, self.block_length = split, block_length
        self._source = open_folder(folder, cache_bytes)
        self.manifest: Manifest = self._source.manifest
        self._shards: tuple[ShardInfo, ...] = _split_shards(self.manifest, folder, split)
        self._source.check(self._shards)
        self.shard_blocks: tuple[int, ...] = self._count_blocks()
        self._starts = np.concatenate([[0], np.cumsum(self.shard_blocks)]).astype(np.int64)
        self._ahead: list[int] = []
        self._reset()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, block_ids: np.ndarray) -> np.ndarray:
        """Token ids [n, T] int64 of the blocks `block_ids` [n]; IndexError outside [0, len)."""
        self._source.raise_damaged()
        ids_BT = super().read(block_ids)
        if ids_BT.size and ids_BT.max() >= self.manifest.vocab_size:
            index = self._locate(block_ids)[0][int(ids_BT.max(axis=1).argmax())]
            problem = f"damaged: it holds the id {ids_BT.max()}, the vocabulary ends at {self._last_id}"
            raise UserError(shard_fault(self._source.name, self._shards[index].file, problem))
        return ids_BT

    def finish_checks(self) -> None:
        """Wait for the checksums of all shards used so far; `UserError` names the damaged ones."""
        self._source.finish_checks()

    def look_ahead(self, order: BlockOrder, position: int) -> None:
        """Say that the reader stands at `position` of `order`, so that what comes next is fetched in time.

        Cheap enough for every step; does nothing for a folder on this machine.
        """
        ahead = order.shards_ahead(position)
        if ahead != self._ahead:
            self._ahead = ahead
            self._source.look_ahead(order.window_shards, [self._shards[index] for index in ahead])

    @property
    def tokenizer_folder(self) -> Path:
        """Folder of the tokenizer that made the shards, on this machine."""
        return self._source.tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._open: dict[int, Shard] = {}
        self._opening = threading.Lock()
        self._ahead = []

    @property
    def _last_id(self) -> int:
        return self.manifest.vocab_size - 1

    def _locate(self, block_ids: np.ndarray) -> tuple[list[int], list[int]]:
        return find_blocks(block_ids, self._starts, self.block_length)

    def _shard(self, index: int) -> Shard:
        shard = self._open.get(index)
        if shard is None:
            with self._opening:
                shard = self._open.get(index) or self._open_shard(index)
        return shard

    def _open_shard(self, index: int) -> Shard:
        # Before, not after: a cache needs the room of what is let go.
        while len(self._open) >= self._source.open_limit:
            self._open.pop(next(iter(self._open)))
        shard = self._open[index] = self._source.open(self._shards[index])
        return shard

    def _count_blocks(self) -> tuple[int, ...]:
        if self.block_length < 1:
            raise UserError(
                Fault("data.block_length", "must be at least 1", "1024 is usual", self.block_length)
            )
        counts = tuple(info.tokens // self.block_length for info in self._shards)
        if not any(counts):
            longest = max(info.tokens for info in self._shards)
            problem = f"longer than every shard of split {self.split!r} (the longest has {longest} tokens)"
            remedy = "take shorter blocks, or build shards from more text"
            raise UserError(Fault("data.block_length", problem, remedy, self.block_length))
        return counts


def _split_shards(manifest: Manifest, folder: Path | str, split: str) -> tuple[ShardInfo, ...]:
    shards = manifest.splits.get(split)
    if not shards:
        remedy = suggestion(split, [name for name, some in manifest.splits.items() if some])
        if split == "validation":
            remedy = "build the shards with a larger --validation-fraction"
        raise UserError(Fault("data", f"{folder} has no split {split!r}", remedy))
    return shards
