"""A weighted mixture of several folders of shards, with the interfaces of one folder.

The stream is divided into rounds of 10,000 positions. In each round every folder gets its share of the
positions, to the nearest 1/10,000, chosen by a keyed permutation, so any long stretch of the stream contains
the right shares. The blocks of a folder follow its own `BlockOrder`, epoch after epoch at its own pace.
(Within a round, the next blocks of a folder are permuted once more.)
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import LRUCache, cachedmethod

from gaguide.data.format.manifest import MAX_MARKS, Manifest
from gaguide.data.read.blocks import BlockStore
from gaguide.data.read.order import WINDOW_SHARDS, BlockOrder, derived_key, keyed_permutation
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.files import hash_json

ROUND = 10_000
_CACHED_ROUNDS = 4
_ALGORITHM = "rounds-10000/1"
_PART_SALT, _ROUND_SALT = 0x70617274, 0x726F756E


@dataclass(frozen=True)
class MixedOrder:
    """Order of the blocks of a `MixedStore`, determined by the fields alone.

    An epoch has one position for each block of all folders. In it a folder is read (its weight / its share
    of all blocks) times.
    """

    part_blocks: tuple[tuple[int, ...], ...]
    """`shard_blocks` of each folder."""
    weights: tuple[float, ...]
    """Weight of each folder: positive, in any unit."""
    seed: int
    """Seed of the mixture and of every folder's order."""
    window_shards: int = WINDOW_SHARDS
    """As in `BlockOrder`, for each folder."""
    growing: bool = False
    """As in `BlockOrder`, for each folder."""

    def __post_init__(self) -> None:
        if not self.part_blocks or len(self.part_blocks) != len(self.weights):
            raise ValueError("a mixture needs at least one folder, and one weight for each")
        with FaultCollector() as faults:
            faults.add(*_weight_faults(self.weights))

    @cached_property
    def total_blocks(self) -> int:
        """Number of positions in an epoch."""
        return sum(map(sum, self.part_blocks))

    @property
    def shard_blocks(self) -> tuple[int, ...]:
        """Number of blocks of every shard, folder after folder."""
        return sum(self.part_blocks, ())

    @cached_property
    def shares(self) -> tuple[int, ...]:
        """Number of positions of each folder in a round of `ROUND`."""
        return _shares(self.weights)

    def epochs(self, positions: int) -> tuple[float, ...]:
        """How often each folder's blocks are read in so many positions, to the nearest block."""
        return tuple(
            round(positions * share / ROUND) / sum(blocks)
            for share, blocks in zip(self.shares, self.part_blocks, strict=True)
        )

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the order, to compare it when a run is resumed."""
        parts = [order.fingerprint for order in self.orders]
        return hash_json([_ALGORITHM, self.seed, self.shares, parts])

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Global block ids, int64, at `positions` (any shape, int64 ≥ 0) of the endless stream."""
        part, place = self.locate(positions)
        ids = np.empty_like(place)
        for index in np.unique(part).tolist():
            here = part == index
            ids[here] = self._part_start[index] + self.orders[index].at(place[here])
        return ids

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The index of the folder at each position, and the position in that folder's order; both int64."""
        positions = np.asarray(positions, np.int64)
        if positions.size and positions.min() < 0:
            raise ValueError("positions must not be negative")
        rounds, within = np.divmod(positions, ROUND)
        slots = np.empty_like(within)
        for number in np.unique(rounds).tolist():
            here = rounds == number
            slots[here] = self._round(number)[within[here]]
        ends = np.cumsum(self.shares)
        part = np.searchsorted(ends, slots, side="right")
        shares = np.array(self.shares, np.int64)[part]
        # The slots of a round are distinct, so the positions of a folder are distinct and have no gap.
        return part, rounds * shares + slots - (ends[part] - shares)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @cachedmethod(attrgetter("_rounds"), lock=attrgetter("_lock"))
    def _round(self, number: int) -> np.ndarray:
        key = derived_key(self.seed, _ROUND_SALT, number)
        return keyed_permutation(np.arange(ROUND, dtype=np.int64), ROUND, key)

    @cached_property
    def _rounds(self) -> LRUCache[Any, np.ndarray]:
        return LRUCache(_CACHED_ROUNDS)

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    @cached_property
    def orders(self) -> tuple[BlockOrder, ...]:
        """The order of each folder."""
        return tuple(
            BlockOrder(blocks, derived_key(self.seed, _PART_SALT, index), self.window_shards, self.growing)
            for index, blocks in enumerate(self.part_blocks)
        )

    @cached_property
    def _part_start(self) -> list[int]:
        return np.cumsum([0, *map(sum, self.part_blocks)]).tolist()


def _weight_faults(weights: Sequence[float]) -> list[Fault]:
    wrong = [weight for weight in weights if not (math.isfinite(weight) and weight > 0)]
    if wrong:
        remedy = "omit a folder that should not be read"
        return [Fault("weight", "must be a positive number", remedy, weight) for weight in wrong]
    total = sum(weights)
    return [
        Fault("weight", f"is less than 1/{ROUND:,} of all weights", "increase it, or omit the folder", weight)
        for weight in weights
        if weight * ROUND < total
    ]


def _shares(weights: Sequence[float]) -> tuple[int, ...]:
    """`ROUND` positions divided by weight; those left by rounding down go to the largest remainders."""
    exact = [weight * ROUND / sum(weights) for weight in weights]
    shares = [int(each) for each in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (shares[index] - exact[index], index))
    for index in by_remainder[: ROUND - sum(shares)]:
        shares[index] += 1
    return tuple(shares)


class MixedStore:
    """The blocks of several stores, numbered store after store.

    `manifest` is the stores' joint manifest. Raises a `UserError` unless all have the same tokenizer, and
    `ValueError` unless they have the same block length.
    """

    def __init__(self, stores: Sequence[BlockStore]):
        self.stores = tuple(stores)
        if not self.stores:
            raise ValueError("a mixture needs at least one store")
        self.block_length = self.stores[0].block_length
        if any(store.block_length != self.block_length for store in self.stores):
            raise ValueError("the stores of a mixture need the same block length")
        self.manifest = _joint_manifest(self.stores)
        self._starts = np.cumsum([0, *map(len, self.stores)]).astype(np.int64)
        self.marks = self.manifest.marks

    @property
    def part_blocks(self) -> tuple[tuple[int, ...], ...]:
        """`shard_blocks` of each store, for `MixedOrder`."""
        return tuple(store.shard_blocks for store in self.stores)

    @property
    def shard_blocks(self) -> tuple[int, ...]:
        """Number of blocks of every shard, store after store."""
        return sum(self.part_blocks, ())

    @property
    def tokenizer_folder(self) -> Path:
        """As `BlockStore.tokenizer_folder`; the stores have the same tokenizer."""
        return self.stores[0].tokenizer_folder

    def look_ahead(self, order: MixedOrder, position: int) -> None:
        """As `BlockStore.look_ahead`, for every store."""
        for store, own, share in zip(self.stores, order.orders, order.shares):
            store.look_ahead(own, position // ROUND * share)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, block_ids: np.ndarray) -> np.ndarray:
        """Token ids [n, T] int64 of the blocks `block_ids` [n]; IndexError outside [0, len)."""
        return self._gather("read", block_ids, np.int64)

    def document_ids(self, block_ids: np.ndarray) -> np.ndarray:
        """As `BlockStore.document_ids`: [n, T] int32."""
        return self._gather("document_ids", block_ids, np.int32)

    def positions(self, block_ids: np.ndarray) -> np.ndarray:
        """As `BlockStore.positions`: [n, T] int64."""
        return self._gather("positions", block_ids, np.int64)

    def read_marks(self, block_ids: np.ndarray) -> np.ndarray:
        """As `BlockStore.read_marks`, with the bits of this store's `marks`: [n, T] uint8."""
        own_BT = self._gather("read_marks", block_ids, np.uint8)
        marks_BT = np.zeros_like(own_BT)
        store_of, _ = self._locate(block_ids)
        for index in np.unique(store_of).tolist():
            here = store_of == index
            for bit, name in enumerate(self.stores[index].marks):
                marks_BT[here] |= (own_BT[here] >> bit & 1) << self.marks.index(name)
        return marks_BT

    def document_starts(self, block_id: int) -> np.ndarray:
        """As `BlockStore.document_starts`."""
        (store,), (local,) = self._locate(np.array([block_id]))
        return self.stores[store].document_starts(int(local))

    def wait_for_checksums(self) -> None:
        """As `BlockStore.wait_for_checksums`, for every store."""
        for store in self.stores:
            store.wait_for_checksums()

    def _gather(self, method: str, block_ids: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
        store_of, local = self._locate(block_ids)
        result_BT = np.empty((len(local), self.block_length), dtype)
        for index in np.unique(store_of).tolist():
            here = store_of == index
            result_BT[here] = getattr(self.stores[index], method)(local[here])
        return result_BT

    def _locate(self, block_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        block_ids = np.asarray(block_ids, np.int64)
        if block_ids.size and not (block_ids.min() >= 0 and block_ids.max() < len(self)):
            raise IndexError(f"block ids must lie in [0, {len(self)})")
        store_of = np.searchsorted(self._starts, block_ids, side="right") - 1
        return store_of, block_ids - self._starts[store_of]


def _joint_manifest(stores: Sequence[BlockStore]) -> Manifest:
    """The joint manifest of the stores' folders; its splits name shards as FOLDER/FILE."""
    first = stores[0].manifest
    faults = FaultCollector()
    faults.add(
        *(
            Fault(
                "data",
                f"was made with another tokenizer than {stores[0].folder}",
                "build all folders of a mixture with the model's tokenizer",
                str(store.folder),
            )
            for store in stores[1:]
            if store.manifest.tokenizer_fingerprint != first.tokenizer_fingerprint
        )
    )
    faults.raise_if_any()
    manifests = [store.manifest for store in stores]
    splits = {
        split: tuple(
            dataclasses.replace(shard, file=f"{store.folder}/{shard.file}")
            for store in stores
            for shard in store.manifest.splits.get(split, ())
        )
        for split in dict.fromkeys(name for manifest in manifests for name in manifest.splits)
    }
    marks = tuple(dict.fromkeys(name for manifest in manifests for name in manifest.marks))
    if len(marks) > MAX_MARKS:
        problem = f"its folders have {len(marks)} different marks ({', '.join(marks)})"
        raise UserError.of("data", problem, f"combine folders with at most {MAX_MARKS}")
    dropped: Counter[str] = Counter()
    for manifest in manifests:
        dropped.update(manifest.dropped)
    return dataclasses.replace(
        first,
        source=" + ".join(manifest.source for manifest in manifests),
        revision=", ".join(manifest.revision for manifest in manifests if manifest.revision) or None,
        documents=sum(manifest.documents for manifest in manifests),
        tokens=sum(manifest.tokens for manifest in manifests),
        dropped=dict(sorted(dropped.items())),
        splits=splits,
        build_id="",
        marks=marks,
    )
