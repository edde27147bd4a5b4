"""Blocks of T consecutive tokens, cut out of a folder of shards at read time without copying the shards.

Each shard is cut from its start; a remainder of fewer than T tokens at its end belongs to no block
(with shards of 50 million tokens and T = 1,024 that is at most 0.002% of them).
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from gaguide.data.manifest import Manifest, ShardInfo, read_manifest
from gaguide.data.shards import DamagedShardError, Shard, check_size, open_shard
from gaguide.errors import Fault, UserError, suggestion

# The order reads a window of 8 shards at a time; two epochs may meet in a batch.
_OPEN_SHARDS = 32


class BlockStore:
    """Random access to the blocks of one split.

    shard_blocks: blocks of each shard; global block ids count through them in shard order.
    Opening compares every shard's presence and size with the manifest; a shard is mapped at first use.
    May be pickled, and read from several threads or processes.
    """

    def __init__(self, folder: Path, split: str, block_length: int):
        self.folder, self.split, self.block_length = Path(folder), split, block_length
        self.manifest: Manifest = read_manifest(self.folder)
        self._shards: tuple[ShardInfo, ...] = _split_shards(self.manifest, self.folder, split)
        self._check_sizes()
        self.shard_blocks: tuple[int, ...] = self._count_blocks()
        self._starts = np.concatenate([[0], np.cumsum(self.shard_blocks)]).astype(np.int64)
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, block_ids: np.ndarray) -> np.ndarray:
        """Token ids [n, T] int64 of the blocks `block_ids` [n]; IndexError outside [0, len)."""
        block_ids = np.asarray(block_ids, np.int64)
        ids_BT = np.empty((len(block_ids), self.block_length), np.int64)
        shard_of, local = self._locate(block_ids)
        for index in np.unique(shard_of).tolist():
            here = shard_of == index
            blocks_NT = self._shard(index).tokens[: self.shard_blocks[index] * self.block_length]
            ids_BT[here] = blocks_NT.reshape(-1, self.block_length)[local[here]]
        return ids_BT

    def document_starts(self, block_id: int) -> np.ndarray:
        """Places [k] int64 in [0, T) of block `block_id` where a document begins, ascending."""
        shard_of, local = self._locate(np.array([block_id], np.int64))
        offsets = self._shard(int(shard_of[0])).offsets
        first = int(local[0]) * self.block_length
        low, high = np.searchsorted(offsets, [first, first + self.block_length])
        # The last offset is the shard's end, where no document begins.
        return offsets[low : min(int(high), len(offsets) - 1)].astype(np.int64) - first

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def _locate(self, block_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if block_ids.size and not (block_ids.min() >= 0 and block_ids.max() < len(self)):
            raise IndexError(f"block ids must lie in [0, {len(self)})")
        shard_of = np.searchsorted(self._starts, block_ids, side="right") - 1
        return shard_of, block_ids - self._starts[shard_of]

    def _shard(self, index: int) -> Shard:
        shard = self._open.get(index)
        if shard is None:
            info = self._shards[index]
            try:
                shard = open_shard(self.folder / info.file, info, self.manifest.tokenizer_fingerprint)
            except DamagedShardError as error:
                raise UserError(_shard_fault(self.folder / info.file, error)) from None
            self._open[index] = shard
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    def _check_sizes(self) -> None:
        faults = []
        for info in self._shards:
            try:
                check_size(self.folder / info.file, info)
            except DamagedShardError as error:
                faults.append(_shard_fault(self.folder / info.file, error))
        if faults:
            raise UserError(faults)

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


def _split_shards(manifest: Manifest, folder: Path, split: str) -> tuple[ShardInfo, ...]:
    shards = manifest.splits.get(split)
    if not shards:
        remedy = suggestion(split, [name for name, some in manifest.splits.items() if some])
        if split == "validation":
            remedy = "build the shards with a larger --validation-fraction"
        raise UserError(Fault("data", f"{folder} has no split {split!r}", remedy))
    return shards


def _shard_fault(path: Path, error: DamagedShardError) -> Fault:
    return Fault(
        "data",
        f"shard {path} is {error}",
        f"see `gaguide data verify {path.parent}`; copy the file again, or build the folder anew",
    )
