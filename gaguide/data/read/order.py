"""The order of blocks in training: a pure function of seed and position.

The training stream is endless: epoch 0, then epoch 1, and so on, each a new permutation of all blocks.
Position p of the stream is block `order.at([p])`; step s with global batch G reads positions s·G to
s·G + G − 1, of which each rank takes its slice by arithmetic. World size, accumulation, prefetching and
restarts therefore cannot change what a step reads, and resuming costs the same at any step.

Within an epoch the shards are permuted and grouped into windows of consecutive shards. Blocks are shuffled
within a window by a keyed permutation that computes any element in O(1). Memory therefore grows with the
number of shards, not of blocks, and a reader needs `window_shards` shards at a time.
"""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
from cachetools import LRUCache, cachedmethod

from gaguide.files import hash_json

WINDOW_SHARDS = 8
"""Default number of shards that are shuffled together."""

OPEN_SHARDS = 4 * WINDOW_SHARDS
"""Number of shards that a reader keeps open: two windows may be in use, also where two epochs meet."""

_ALGORITHM = "feistel-8/1"  # part of the fingerprint: change it whenever the resulting order changes
_ROUNDS = 8
_CHUNK = 4096  # positions computed at once: many steps, in the time of a few
_CACHED = 4  # epochs' tables, and chunks
_EPOCH_SALT, _SHARD_SALT, _WINDOW_SALT = 0x65706F63, 0x73686172, 0x77696E64


class Order(Protocol):
    """The interface of an order that training uses: of `BlockOrder`, `MixedOrder` and `SourceOrder`."""

    @property
    def total_blocks(self) -> int:
        """Number of blocks in an epoch."""

    @property
    def fingerprint(self) -> str:
        """Identifies the order, to compare it when a run is resumed."""

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Global block ids, int64, at `positions` (any shape, int64 ≥ 0) of the endless stream."""


@dataclass(frozen=True)
class BlockOrder:
    """Order of the blocks of some shards, determined by the fields alone."""

    shard_blocks: tuple[int, ...]
    """Number of blocks of each shard; global block ids number the blocks of all shards in this order."""
    seed: int
    """Seed of the shuffle."""
    window_shards: int = WINDOW_SHARDS
    """Number of shards that are shuffled together, at least 1."""
    growing: bool = False
    """Whether epoch 0 begins with windows of 1, 2, 4, … shards, so that a run whose shards are being fetched
    can start when the first one has arrived."""

    def __post_init__(self) -> None:
        if self.total_blocks < 1 or min(self.shard_blocks) < 0:
            raise ValueError("an order needs at least one block and no negative counts")
        if self.window_shards < 1:
            raise ValueError("window_shards must be at least 1")

    @cached_property
    def total_blocks(self) -> int:
        """Number of blocks in an epoch."""
        return sum(self.shard_blocks)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the order, to compare it when a run is resumed."""
        identity = [_ALGORITHM, self.seed, self.window_shards, list(self.shard_blocks)]
        identity += ["growing"] if self.growing else []
        return hash_json(identity)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Global block ids, int64, at `positions` (any shape, int64 ≥ 0) of the endless stream."""
        positions = np.asarray(positions, np.int64)
        if not positions.size:
            return positions.copy()
        low, high = int(positions.min()), int(positions.max())
        if low < 0:
            raise ValueError("positions must not be negative")
        # With few blocks, a chunk must not span many epochs.
        size = min(_CHUNK, 4 * self.total_blocks)
        first, last = low // size, high // size
        if last - first < _CACHED:
            chunks = [self._chunk(number, size) for number in range(first, last + 1)]
            return (chunks[0] if len(chunks) == 1 else np.concatenate(chunks))[positions - first * size]
        return self._compute(positions)

    def shards_ahead(self, position: int, windows: int = 2) -> list[int]:
        """Indices of the shards that are read from `position` on: those of its window, then of later ones."""
        epoch, within = divmod(position, self.total_blocks)
        ahead: list[int] = []
        while windows:
            table = self._table(epoch)
            first = int(np.searchsorted(table.window_start, within, side="right")) - 1
            end = min(first + windows, len(table.window_edge) - 1)
            ahead += table.slots[table.window_edge[first] : table.window_edge[end]].tolist()
            windows, epoch, within = windows - (end - first), epoch + 1, 0
        return list(dict.fromkeys(ahead))

    @cachedmethod(attrgetter("_tables"), lock=attrgetter("_lock"))
    def _table(self, epoch: int) -> _EpochTable:
        return _epoch_table(self, epoch)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def _compute(self, positions: np.ndarray) -> np.ndarray:
        epochs, within = np.divmod(positions, self.total_blocks)
        ids = np.empty_like(within)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            ids[here] = self._table(epoch).block_ids(within[here])
        return ids

    @cachedmethod(attrgetter("_chunks"), lock=attrgetter("_lock"))
    def _chunk(self, chunk: int, size: int) -> np.ndarray:
        return self._compute(np.arange(chunk * size, (chunk + 1) * size))

    @cached_property
    def _tables(self) -> LRUCache[Any, _EpochTable]:
        return LRUCache(_CACHED)

    @cached_property
    def _chunks(self) -> LRUCache[Any, np.ndarray]:
        return LRUCache(_CACHED)

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()


@dataclass(frozen=True)
class _EpochTable:
    """The order of one epoch's shards; int64 arrays by slot, of which each has one shard, or by window."""

    key: int
    """Key of the epoch's shuffles."""
    slots: np.ndarray
    """[slots] the shard in each slot."""
    window_edge: np.ndarray
    """[windows + 1] first slot of each window."""
    slot_shard_start: np.ndarray
    """[slots] first global block id of the shard in each slot."""
    slot_start: np.ndarray
    """[slots + 1] first epoch position (before the shuffle) of each slot."""
    window_start: np.ndarray
    """[windows + 1] first epoch position of each window."""

    def block_ids(self, within: np.ndarray) -> np.ndarray:
        window = np.searchsorted(self.window_start, within, side="right") - 1
        shuffled = np.empty_like(within)
        for each in np.unique(window).tolist():
            here = window == each
            start, end = int(self.window_start[each]), int(self.window_start[each + 1])
            key = derived_key(self.key, _WINDOW_SALT, each)
            shuffled[here] = start + keyed_permutation(within[here] - start, end - start, key)
        slot = np.searchsorted(self.slot_start, shuffled, side="right") - 1
        return self.slot_shard_start[slot] + (shuffled - self.slot_start[slot])


def _epoch_table(order: BlockOrder, epoch: int) -> _EpochTable:
    counts = np.array(order.shard_blocks, np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    key = derived_key(order.seed, _EPOCH_SALT, epoch)
    used = np.flatnonzero(counts)  # a shard without a block would make empty windows
    # A shuffle by sorting keyed hashes does not depend on the version of numpy.
    slots = used[
        np.argsort(_mix64(used.astype(np.uint64) + _u64(derived_key(key, _SHARD_SALT, 0))), kind="stable")
    ]
    slot_start = np.concatenate([[0], np.cumsum(counts[slots])]).astype(np.int64)
    edges = _window_edges(len(slots), order.window_shards, order.growing and epoch == 0)
    return _EpochTable(key, slots, edges, starts[slots], slot_start, slot_start[edges])


def _window_edges(slots: int, window_shards: int, growing: bool) -> np.ndarray:
    """First slot of each window, and the number of slots."""
    edges = [0]
    size = 1
    while growing and size < window_shards and edges[-1] + size < slots:
        edges.append(edges[-1] + size)
        size *= 2
    rest = slots - edges[-1]
    windows = math.ceil(rest / window_shards)
    # Windows of nearly equal size, instead of a small last one.
    equal = edges[-1] + np.arange(1, windows + 1) * rest // windows
    return np.array([*edges, *equal.tolist()], np.int64)


def keyed_permutation(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Image of each `index` (int64) under the permutation of [0, size) selected by `key` (64 bits).

    A Feistel network over the smallest power of two ≥ size; results outside the range are mapped again
    ("cycle walking"), which takes fewer than two passes on average. So each element costs O(1).
    """
    if size < 2:
        return np.zeros_like(index)
    bits = (size - 1).bit_length()
    low_bits = bits // 2
    keys = [_u64(derived_key(key, number, bits)) for number in range(_ROUNDS)]
    result = index.astype(np.uint64)
    pending = np.arange(result.size)
    flat = result.reshape(-1)
    while pending.size:
        walked = _feistel(flat[pending], low_bits, bits - low_bits, keys)
        flat[pending] = walked
        pending = pending[walked >= np.uint64(size)]
    return result.astype(np.int64)


def _feistel(values: np.ndarray, low_bits: int, high_bits: int, keys: list[np.uint64]) -> np.ndarray:
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << high_bits) - 1)
    low, high = values & low_mask, values >> np.uint64(low_bits)
    for number, key in enumerate(keys):
        # Each round changes one half by a function of the other, so every round is invertible.
        if number % 2 == 0:
            low = low ^ (_mix64(high + key) & low_mask)
        else:
            high = high ^ (_mix64(low + key) & high_mask)
    return (high << np.uint64(low_bits)) | low


def _mix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 on uint64 arrays (overflow wraps)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def derived_key(*numbers: int) -> int:
    """A 64-bit key derived from integers of any size and sign."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


def _u64(number: int) -> np.uint64:
    return np.uint64(number & 0xFFFFFFFFFFFFFFFF)


def rank_micro_batches(
    order: Order, step: int, global_batch: int, micro_batch: int, rank: int, world_size: int
) -> np.ndarray:
    """Block ids [accumulation, micro_batch] int64 that `rank` trains on in `step` (from 0).

    Micro batch a of rank r starts at position (a·world_size + r)·micro_batch of the step's global batch, so
    all ranks together read the same `global_batch` blocks however the batch is split.
    """
    if global_batch < 1 or global_batch % (micro_batch * world_size):
        raise ValueError(
            f"global batch {global_batch} is not micro batch {micro_batch} × world size {world_size} × n"
        )
    if not 0 <= rank < world_size or step < 0:
        raise ValueError(f"rank {rank} of {world_size} at step {step} does not exist")
    accumulation = global_batch // (micro_batch * world_size)
    first_A1 = (np.arange(accumulation, dtype=np.int64)[:, None] * world_size + rank) * micro_batch
    positions_AB = step * global_batch + first_A1 + np.arange(micro_batch, dtype=np.int64)
    return order.at(positions_AB)


def steps_for_epochs(total_blocks: int, epochs: float, global_batch: int) -> int:
    """Number of steps that read every block `epochs` times, rounded up.

    No block is dropped: the last batch is filled with the first blocks of the next epoch.
    """
    return math.ceil(total_blocks * Fraction(str(epochs)) / global_batch)
