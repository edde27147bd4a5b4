"""Blocks of T consecutive tokens, sliced from a folder of shards at read time without copying the shards.

Each shard is divided into blocks from its start; a remainder of fewer than T tokens at its end belongs to no
block (with shards of 50 million tokens and T = 1,024, at most 0.002% of them).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gaguide.data.format.manifest import NO_LOSS, VALIDATION, Manifest, ShardInfo
from gaguide.data.format.shards import Shard, shard_fault
from gaguide.data.read.folder import open_folder
from gaguide.data.read.order import BlockOrder
from gaguide.errors import UserError, suggestion

CACHE_BYTES = 20_000_000_000


class Blocks(Protocol):
    """The interface of blocks that training uses: of `BlockStore`, `MixedStore` and `GrowingStore`."""

    block_length: int
    marks: tuple[str, ...]

    def __len__(self) -> int:
        """Number of blocks in an epoch."""

    def read(self, block_ids: np.ndarray) -> np.ndarray:
        """Token ids [n, T] int64 of the blocks `block_ids` [n]; IndexError outside [0, len)."""

    def document_ids(self, block_ids: np.ndarray) -> np.ndarray:
        """Index of the document of each token within its block, [n, T] int32 from 0.

        A document that began in an earlier block has index 0 in this one.
        """

    def positions(self, block_ids: np.ndarray) -> np.ndarray:
        """Position of each token in its document, counted within the block, [n, T] int64 from 0."""

    def read_marks(self, block_ids: np.ndarray) -> np.ndarray:
        """Marks of each token, [n, T] uint8, bit k for the k-th of `marks`; zeros where there are none."""

    def look_ahead(self, order: Any, position: int) -> None:
        """Prefetch the blocks that are read from `position` of `order` on."""

    def wait_for_checksums(self) -> None:
        """Wait for the checksums of all shards used so far; `UserError` if shards are damaged."""


class ShardBlocks:
    """Blocks of T tokens sliced from shards, which a subclass locates (`_locate`) and opens (`_open_shard`).

    Keeps the last `open_limit` shards open. May be read from several threads, and pickled.
    """

    block_length: int

    def __init__(self, block_length: int, open_limit: int, marks: tuple[str, ...] = ()) -> None:
        self.block_length, self._open_limit, self.marks = block_length, open_limit, marks
        self._close_shards()

    def _locate(self, block_ids: np.ndarray) -> tuple[list[int], list[int]]:
        """The shard of each block, and the token of the shard at which the block begins."""
        raise NotImplementedError

    def _open_shard(self, index: int) -> Shard:
        raise NotImplementedError

    def read(self, block_ids: np.ndarray) -> np.ndarray:
        """Token ids [n, T] int64 of the blocks `block_ids` [n]; IndexError outside [0, len)."""
        shard_of, first = self._locate(block_ids)
        ids_BT = np.empty((len(first), self.block_length), np.int64)
        for row, (index, start) in enumerate(zip(shard_of, first)):
            ids_BT[row] = self._shard(index).tokens[start : start + self.block_length]
        return ids_BT

    def read_marks(self, block_ids: np.ndarray) -> np.ndarray:
        """As `Blocks.read_marks`."""
        shard_of, first = self._locate(block_ids)
        marks_BT = np.zeros((len(first), self.block_length), np.uint8)
        for row, (index, start) in enumerate(zip(shard_of, first)):
            marks = self._shard(index).marks
            if marks is not None:
                marks_BT[row] = marks[start : start + self.block_length]
        return marks_BT

    def look_ahead(self, order: Any, position: int) -> None:
        """Do nothing: the shards are on this machine."""

    def wait_for_checksums(self) -> None:
        """Do nothing: this run has written the shards itself."""

    def document_starts(self, block_id: int) -> np.ndarray:
        """Offsets [k] int64 in [0, T) at which a document begins in block `block_id`, ascending."""
        shard_of, first = self._locate(np.array([block_id]))
        return self._document_starts(shard_of[0], first[0])

    def document_ids(self, block_ids: np.ndarray) -> np.ndarray:
        """As `Blocks.document_ids`."""
        begins_BT = self._begins(block_ids)
        begins_BT[:, :1] = False
        return begins_BT.cumsum(axis=1, dtype=np.int32)

    def positions(self, block_ids: np.ndarray) -> np.ndarray:
        """As `Blocks.positions`."""
        offsets_T = np.arange(self.block_length, dtype=np.int64)
        return offsets_T - np.maximum.accumulate(np.where(self._begins(block_ids), offsets_T, 0), axis=1)

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
        # The last offset is the end of the shard, where no document begins.
        return offsets[low : min(int(high), len(offsets) - 1)].astype(np.int64) - first

    def _shard(self, index: int) -> Shard:
        shard = self._open.get(index)
        if shard is None:
            with self._opening:
                shard = self._open.get(index)
                if shard is None:
                    # One is closed before another is opened: a cache of remote shards needs the space.
                    while len(self._open) >= self._open_limit:
                        self._open.pop(next(iter(self._open)))
                    shard = self._open[index] = self._open_shard(index)
        return shard

    def _close_shards(self) -> None:
        # First in, first out. A dict: threads look shards up without the lock, once for every block.
        self._open: dict[int, Shard] = {}
        self._opening = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_opening")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._close_shards()


def leaves_out(blocks: Blocks) -> bool:
    """Whether the loss leaves out marked tokens of these blocks: prompts, masked words."""
    return any(name in NO_LOSS for name in blocks.marks)


def are_counted(blocks: Blocks, block_ids: np.ndarray) -> np.ndarray:
    """Whether the loss counts each token of the blocks `block_ids` [n] where it is a target, [n, T] bool."""
    bits = sum(1 << bit for bit, name in enumerate(blocks.marks) if name in NO_LOSS)
    return (blocks.read_marks(block_ids) & np.uint8(bits)) == 0


def find_blocks(block_ids: np.ndarray, starts: np.ndarray, block_length: int) -> tuple[list[int], list[int]]:
    """The shard of each block, and the token of the shard at which the block begins.

    `starts` [shards + 1] is the first global block id of each shard, and the number of blocks. IndexError
    outside it.
    """
    block_ids = np.asarray(block_ids, np.int64)
    if block_ids.size and not (block_ids.min() >= 0 and block_ids.max() < starts[-1]):
        raise IndexError(f"block ids must lie in [0, {starts[-1]})")
    shard_of = np.searchsorted(starts, block_ids, side="right") - 1
    return shard_of.tolist(), ((block_ids - starts[shard_of]) * block_length).tolist()


class BlockStore(ShardBlocks):
    """Random access to the blocks of one split of a folder of shards.

    `folder` is a path or any address that fsspec knows (`s3://…`, `https://…`). Shards at an address are
    fetched when they are read, or earlier by `look_ahead`, into a cache of at most `cache_bytes` on this
    host's disk, and their checksums are compared when they arrive.

    `shard_blocks` is the number of blocks of each shard; global block ids number them in this order. Opening
    the store compares the presence and size of every shard with the manifest. A shard is mapped at its first
    use, which checks its structure and tokenizer; ids are checked at every read, and its checksum in the
    background, once on each host, with faults raised by the next `read`.
    """

    def __init__(self, folder: Path | str, split: str, block_length: int, cache_bytes: int = CACHE_BYTES):
        self.folder = folder if "://" in str(folder) else Path(folder)
        self.split = split
        self._source = open_folder(folder, cache_bytes)
        self.manifest: Manifest = self._source.manifest
        super().__init__(block_length, self._source.open_limit, self.manifest.marks)
        self._shards: tuple[ShardInfo, ...] = _split_shards(self.manifest, folder, split)
        self._source.check(self._shards)
        self.shard_blocks: tuple[int, ...] = self._count_blocks()
        self._starts = np.concatenate([[0], np.cumsum(self.shard_blocks)]).astype(np.int64)
        self._ahead: list[int] = []

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, block_ids: np.ndarray) -> np.ndarray:
        """Token ids [n, T] int64 of the blocks `block_ids` [n].

        IndexError outside [0, len); `UserError` if a shard has been found damaged.
        """
        self._source.raise_damaged()
        ids_BT = super().read(block_ids)
        if ids_BT.size and ids_BT.max() >= self.manifest.vocab_size:
            index = self._locate(block_ids)[0][int(ids_BT.max(axis=1).argmax())]
            last_id = self.manifest.vocab_size - 1
            problem = f"damaged: it holds the id {ids_BT.max()}, the vocabulary ends at {last_id}"
            raise UserError(shard_fault(self._source.name, self._shards[index].file, problem))
        return ids_BT

    def wait_for_checksums(self) -> None:
        """Wait for the checksums of all shards used so far; `UserError` if shards are damaged."""
        self._source.wait_for_checksums()

    def look_ahead(self, order: BlockOrder, position: int) -> None:
        """Prefetch the shards that are read from `position` of `order` on.

        Cheap enough to call in every step; does nothing for a local folder.
        """
        ahead = order.shards_ahead(position)
        if ahead != self._ahead:
            self._ahead = ahead
            self._source.look_ahead(order.window_shards, [self._shards[index] for index in ahead])

    @property
    def tokenizer_folder(self) -> Path:
        """Folder, on this machine, of the tokenizer that made the shards."""
        return self._source.tokenizer_folder

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_ahead": []}

    def _locate(self, block_ids: np.ndarray) -> tuple[list[int], list[int]]:
        return find_blocks(block_ids, self._starts, self.block_length)

    def _open_shard(self, index: int) -> Shard:
        shard = self._source.open(self._shards[index])
        if (shard.marks is None) == bool(self.marks):
            problem = "foreign: the manifest and the shard disagree on whether its tokens have marks"
            raise UserError(shard_fault(self._source.name, self._shards[index].file, problem))
        return shard

    def _count_blocks(self) -> tuple[int, ...]:
        if self.block_length < 1:
            raise UserError.of("data.block_length", "must be at least 1", "1024 is usual", self.block_length)
        counts = tuple(info.tokens // self.block_length for info in self._shards)
        if not any(counts):
            longest = max(info.tokens for info in self._shards)
            problem = f"longer than every shard of split {self.split!r} (the longest has {longest} tokens)"
            remedy = "use shorter blocks, or build shards from more text"
            raise UserError.of("data.block_length", problem, remedy, self.block_length)
        return counts


def _split_shards(manifest: Manifest, folder: Path | str, split: str) -> tuple[ShardInfo, ...]:
    shards = manifest.splits.get(split)
    if not shards:
        remedy = suggestion(split, [name for name, some in manifest.splits.items() if some])
        if split == VALIDATION:
            remedy = "build the shards with a larger --validation-fraction"
        raise UserError.of("data", f"{folder} has no split {split!r}", remedy)
    return shards
