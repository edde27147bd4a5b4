"""The order in which blocks are seen: a pure function of seed and position, and nothing else.

The training stream is endless: epoch 0, then epoch 1, and so on, each a fresh permutation of all
blocks. Position p of the stream is block `order.at([p])`; step s with global batch G sees positions
s·G … s·G + G − 1, and a rank takes its slice of them by arithmetic. So world size, accumulation,
prefetching and restarts can't change what a step sees, and resuming anywhere costs the same.

Within an epoch the shards are permuted, cut into windows of consecutive shards, and blocks are shuffled
inside a window by a keyed permutation that computes any element in O(1). So memory grows with the
number of shards, not of blocks, and a reader needs `window_shards` shards at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np

_ALGORITHM = "feistel-8/1"  # part of the fingerprint: change it with any change of the resulting order
_ROUNDS = 8
_CHUNK = 4096  # positions computed at once: many steps' worth, in the time that a few steps' would take
_KEPT = 4
_EPOCH_SALT, _SHARD_SALT, _WINDOW_SALT = 0x65706F63, 0x73686172, 0x77696E64


class Order(Protocol):
    """What training needs of an order: `BlockOrder` and `MixedOrder` have it."""

    @property
    def total_blocks(self) -> int:
        """Blocks in an epoch."""

    @property
    def fingerprint(self) -> str:
        """Identifies the order, for the check at resume."""

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Global block ids, int64, at `positions` (any shape, int64 ≥ 0) of the endless stream."""


@dataclass(frozen=True)
class BlockOrder:
    """Order of the blocks of some shards.

    shard_blocks: blocks in each shard, in shard order (global block ids count through them);
    window_shards: shards that are mixed with each other, at least 1; growing: epoch 0 begins with windows of
    1, 2, 4 … shards, so that a run on shards that are being fetched begins when the first one is there.
    Fields alone decide the order.
    """

    shard_blocks: tuple[int, ...]
    seed: int
    window_shards: int = 8
    growing: bool = False

    def __post_init__(self) -> None:
        if self.total_blocks < 1 or min(self.shard_blocks) < 0:
            raise ValueError("an order needs at least one block, and no negative counts")
        if self.window_shards < 1:
            raise ValueError("window_shards must be at least 1")

    @cached_property
    def total_blocks(self) -> int:
        """Blocks in an epoch."""
        return sum(self.shard_blocks)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the order, for the check at resume."""
        identity = [_ALGORITHM, self.seed, self.window_shards, list(self.shard_blocks)]
        identity += ["growing"] if self.growing else []
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Global block ids, int64, at `positions` (any shape, int64 ≥ 0) of the endless stream."""
        positions = np.asarray(positions, np.int64)
        if not positions.size:
            return positions.copy()
        low, high = int(positions.min()), int(positions.max())
        if low < 0:
            raise ValueError("positions must not be negative")
        # However few blocks there are, a chunk spans few epochs.
        size = min(_CHUNK, 4 * self.total_blocks)
        first, last = low // size, high // size
        if last - first < _KEPT:
            chunks = [self._chunk(number, size) for number in range(first, last + 1)]
            return (chunks[0] if len(chunks) == 1 else np.concatenate(chunks))[positions - first * size]
        return self._compute(positions)

    def shards_ahead(self, position: int, windows: int = 2) -> list[int]:
        """Shards that `position` and what follows read: those of its window, then of the next ones."""
        epoch, within = divmod(position, self.total_blocks)
        ahead: list[int] = []
        while windows:
            table = self._table(epoch)
            first = int(np.searchsorted(table.window_start, within, side="right")) - 1
            end = min(first + windows, len(table.window_edge) - 1)
            ahead += table.slots[table.window_edge[first] : table.window_edge[end]].tolist()
            windows, epoch, within = windows - (end - first), epoch + 1, 0
        return list(dict.fromkeys(ahead))

    def _table(self, epoch: int) -> _EpochTable:
        return remember(self._tables, epoch, partial(_epoch_table, self, epoch))

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def _compute(self, positions: np.ndarray) -> np.ndarray:
        epochs, within = np.divmod(positions, self.total_blocks)
        ids = np.empty_like(within)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            ids[here] = self._table(epoch).block_ids(within[here])
        return ids

    def _chunk(self, chunk: int, size: int) -> np.ndarray:
        first = chunk * size
        return remember(self._chunks, chunk, lambda: self._compute(np.arange(first, first + size)))

    # What was computed last; nothing depends on it but time.
    @cached_property
    def _tables(self) -> dict[int, _EpochTable]:
        return {}

    @cached_property
    def _chunks(self) -> dict[int, np.ndarray]:
        return {}


def remember(kept: dict[int, Any], key: int, make: Callable[[], Any]) -> Any:
    """`make()` for this key, from `kept` where it is there; keeps the newest few. Threads may share it."""
    found = kept.get(key)
    if found is None:
        found = kept[key] = make()
        for old in list(kept)[:-_KEPT]:
            kept.pop(old, None)
    return found


@dataclass(frozen=True)
class _EpochTable:
    """One epoch's shards in their order; everything here has one element per shard or per window."""

    key: int
    slots: np.ndarray  # [slots] the shard in each slot
    window_edge: np.ndarray  # [windows + 1] first slot of each window
    slot_shard_start: np.ndarray  # [shards] first global block id of the shard in each slot
    slot_start: np.ndarray  # [shards + 1] first epoch position (before the shuffle) of each slot
    window_start: np.ndarray  # [windows + 1] first epoch position of each window

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
    used = np.flatnonzero(counts)  # a shard shorter than a block would make empty windows
    # Sorting keyed hashes is a shuffle that no numpy release can change.
    slots = used[
        np.argsort(_mix64(used.astype(np.uint64) + _u64(derived_key(key, _SHARD_SALT, 0))), kind="stable")
    ]
    slot_start = np.concatenate([[0], np.cumsum(counts[slots])]).astype(np.int64)
    edges = _window_edges(len(slots), order.window_shards, order.growing and epoch == 0)
    return _EpochTable(key, slots, edges, starts[slots], slot_start, slot_start[edges])


def _window_edges(slots: int, window_shards: int, growing: bool) -> np.ndarray:
    """First slot of each window, and the end."""
    edges = [0]
    size = 1
    while growing and size < window_shards and edges[-1] + size < slots:
        edges.append(edges[-1] + size)
        size *= 2
    rest = slots - edges[-1]
    windows = math.ceil(rest / window_shards)
    # Windows of nearly equal numbers of shards, so that the last one is no thin remainder.
    equal = edges[-1] + np.arange(1, windows + 1) * rest // windows
    return np.array([*edges, *equal.tolist()], np.int64)


def keyed_permutation(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a permutation of [0, size), chosen by the 64-bit `key`, sends each `index` (int64): O(1) each.

    A Feistel network over the smallest power of two ≥ size; results outside are sent through again
    ("cycle walking"), fewer than two passes on average.
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
        # Each half in turn is changed by the other one alone, so every round can be undone.
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
    """A 64-bit key out of integers of any size and sign."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


def _u64(number: int) -> np.uint64:
    return np.uint64(number & 0xFFFFFFFFFFFFFFFF)


def rank_micro_batches(
    order: Order, step: int, global_batch: int, micro_batch: int, rank: int, world_size: int
) -> np.ndarray:
    """Block ids [accumulation, micro_batch] int64 that `rank` trains on at `step` (from 0).

    Micro step a of rank r holds positions (a·world_size + r)·micro_batch onwards of the step's global
    batch; so ranks and micro steps together see exactly the same `global_batch` blocks for any split of it.
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
    """Steps until every block has been seen `epochs` times, rounded up.

    Nothing is dropped: the last batch is filled with the first blocks of the following epoch.
    """
    return math.ceil(total_blocks * Fraction(str(epochs)) / global_batch)
