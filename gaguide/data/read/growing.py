"""Shards that are being made while they are read: training from a source with no build step before.

The build (`background`) makes shards in the order of the source, each whole or not there; what is asked for
and not there yet is waited for. The order of epoch 0 needs only the shards before and at a position, so it is
the same whether they are there or have still to come, and whoever makes them:

    shards in the order of the source, in windows of 1, 2, 4, 8, 8, 8 … shards, blocks shuffled in a window

Later epochs are those of `BlockOrder`, over all shards.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gaguide.data.build.background import FAILURE_FILE
from gaguide.data.build.build import BUILD_FOLDER, Work
from gaguide.data.build.pieces import TRAIN, VALIDATION, read_pieces
from gaguide.data.format.manifest import ShardInfo, is_complete, read_manifest
from gaguide.data.format.shards import DamagedShardError, Shard, open_shard, shard_fault, shard_name
from gaguide.data.read.blocks import CutShards, find_blocks
from gaguide.data.read.order import BlockOrder, derived_key, keyed_permutation
from gaguide.errors import Fault, UserError

WINDOW_SHARDS = 8
_POLL_SECONDS = 0.2
_WINDOW_SALT = 0x67726F77
_ALGORITHM = "source-order/1"


class GrowingShards:
    """The shards of a build in the order of its source, as far as they are there; waits for more.

    One object serves a process: training blocks, held-out blocks and the order look at the same shards.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.folder = work.request.output
        self.train: list[ShardInfo] = []
        self.held_out: list[ShardInfo] = []
        self.complete = False
        # Parts that are whole, and how many shards they gave.
        self._whole, self._whole_train, self._whole_held_out = 0, 0, 0

    def wait(self, enough: Callable[[], bool]) -> None:
        """Until `enough()`, or until there is no more to come; `UserError` where the build has failed."""
        while not (self.complete or enough()):
            self._look()
            if self.complete or enough():
                return
            failure = self.folder / BUILD_FOLDER / FAILURE_FILE
            if failure.exists():
                problem = f"tokenising it failed: {failure.read_text('utf-8')}"
                raise UserError(
                    Fault("data.source", problem, "mend it and start again: what is done is kept")
                )
            time.sleep(_POLL_SECONDS)

    def open(self, split: str, index: int) -> Shard:
        """Map one of the shards that are there, under its first name or its last."""
        info = (self.train if split == TRAIN else self.held_out)[index]
        names = [self.folder / shard_name(split, index)] if split == TRAIN else [self.folder / info.file]
        names.append(self.folder / BUILD_FOLDER / info.file)
        for _ in range(3):  # the end of a build renames files under our hands
            for path in names:
                if path.exists():
                    try:
                        return open_shard(path, info, self.work.fingerprint)
                    except DamagedShardError as error:
                        if not path.exists():  # renamed between the look and the opening
                            continue
                        raise UserError(shard_fault(str(self.folder), path.name, str(error))) from None
        raise UserError(shard_fault(str(self.folder), info.file, "missing"))

    def _look(self) -> None:
        """Take notice of what has come; shards only ever become more."""
        if self.complete:
            return
        if is_complete(self.folder):
            manifest = read_manifest(self.folder)
            if manifest.build_id != self.work.build_id:
                problem = f"the folder holds other shards (of {manifest.source})"
                raise UserError(Fault("data.shards", problem, "name another folder", str(self.folder)))
            self.train = list(manifest.splits.get(TRAIN, ()))
            self.held_out = list(manifest.splits.get(VALIDATION, ()))
            self.complete = True
            return
        for part in self.work.parts[self._whole :]:
            pieces = read_pieces(self.folder / BUILD_FOLDER, part.index)
            train = [piece.shards[TRAIN] for piece in pieces if TRAIN in piece.shards]
            held_out = [piece.shards[VALIDATION] for piece in pieces if VALIDATION in piece.shards]
            # At its end the build removes its records: what has gone was there, and the next look finds the
            # manifest.
            self.train += train[len(self.train) - self._whole_train :]
            self.held_out += held_out[len(self.held_out) - self._whole_held_out :]
            if not (pieces and pieces[-1].last):
                return
            self._whole += 1
            self._whole_train, self._whole_held_out = len(self.train), len(self.held_out)


class GrowingStore(CutShards):
    """The training blocks of a source. `len` waits for the end of the build."""

    def __init__(self, shards: GrowingShards, block_length: int) -> None:
        self.shards, self.block_length = shards, block_length
        self._open: dict[int, Shard] = {}

    @property
    def shard_blocks(self) -> list[int]:
        """Blocks of each shard that is there."""
        return [info.tokens // self.block_length for info in self.shards.train]

    def wait_for_shards(self, count: int) -> bool:
        """Until `count` shards are there; False where the source has fewer."""
        self.shards.wait(lambda: len(self.shards.train) >= count)
        return len(self.shards.train) >= count

    def __len__(self) -> int:
        self.shards.wait(lambda: False)
        return sum(self.shard_blocks)

    def _locate(self, block_ids: np.ndarray) -> tuple[list[int], list[int]]:
        starts = np.concatenate([[0], np.cumsum(self.shard_blocks)]).astype(np.int64)
        return find_blocks(block_ids, starts, self.block_length)

    def _shard(self, index: int) -> Shard:
        if index not in self._open:
            while len(self._open) >= 4 * WINDOW_SHARDS:
                self._open.pop(next(iter(self._open)))
            self._open[index] = self.shards.open(TRAIN, index)
        return self._open[index]


class FirstHeldOut(CutShards):
    """The first `most` blocks of a source's held-out documents, laid end to end; waits for them at first use.

    The first, because a spread over all of them would wait for the end of the build.
    """

    def __init__(self, shards: GrowingShards, block_length: int, most: int) -> None:
        self.shards, self.block_length, self.most = shards, block_length, most

    def __len__(self) -> int:
        return len(self._joined.tokens) // self.block_length

    @cached_property
    def _joined(self) -> Shard:
        wanted = self.most * self.block_length
        self.shards.wait(lambda: sum(info.tokens for info in self.shards.held_out) >= wanted)
        try:
            return self._join(wanted)
        except UserError:
            if self.shards.complete:
                raise
        self.shards.wait(lambda: False)  # the build is at its end: it has joined them itself
        return self._join(wanted)

    def _join(self, wanted: int) -> Shard:
        tokens: list[np.ndarray] = []
        ends: list[np.ndarray] = []
        total = 0
        for index in range(len(self.shards.held_out)):
            if total < wanted:
                shard = self.shards.open(VALIDATION, index)
                tokens.append(np.array(shard.tokens))
                ends.append(shard.offsets[1:].astype(np.int64) + total)
                total += len(shard.tokens)
        if total < self.block_length:
            problem = f"its held-out documents have {total} tokens, less than a block"
            raise UserError(Fault("data.source.validation_fraction", problem, "hold more out"))
        # Not a token more than asked for: how many came at once must not matter.
        offsets = np.concatenate([[0], *ends])
        return Shard(np.concatenate(tokens)[:wanted], offsets[offsets <= wanted], "")

    def _locate(self, block_ids: np.ndarray) -> tuple[list[int], list[int]]:
        return find_blocks(block_ids, np.array([0, len(self)]), self.block_length)

    def _shard(self, index: int) -> Shard:
        return self._joined


@dataclass(frozen=True)
class SourceOrder:
    """Order of the blocks of a `GrowingStore`; its fields, and the source's content, alone decide it."""

    store: GrowingStore
    seed: int

    @property
    def total_blocks(self) -> int:
        """Blocks in an epoch; waits for the end of the build."""
        return len(self.store)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the order, for the check at resume."""
        identity = [_ALGORITHM, self.seed, self.store.block_length, self.store.shards.work.build_id]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Global block ids, int64, at `positions` (any shape, int64 ≥ 0); waits for the shards they need."""
        positions = np.asarray(positions, np.int64)
        if positions.size and positions.min() < 0:
            raise ValueError("positions must not be negative")
        ids = np.empty_like(positions)
        pending = np.ones(positions.shape, bool)
        start, first, size, window = 0, 0, 1, 0
        whole, blocks = True, self.store.shard_blocks
        while whole and pending.any():
            if len(blocks) < first + size:
                whole, blocks = self.store.wait_for_shards(first + size), self.store.shard_blocks
            total = sum(blocks[first : first + size])
            here = pending & (positions < start + total)
            if here.any():
                key = derived_key(self.seed, _WINDOW_SALT, window)
                ids[here] = start + keyed_permutation(positions[here] - start, total, key)
                pending &= ~here
            start, first, window = start + total, first + size, window + 1
            size = min(2 * size, WINDOW_SHARDS)
        if pending.any():
            if start == 0:
                problem = f"no shard of it has a block of {self.store.block_length} tokens"
                raise UserError(Fault("data.source", problem, "take shorter blocks or more text"))
            ids[pending] = self._later.at(positions[pending])
        return ids

    @cached_property
    def _later(self) -> BlockOrder:
        return BlockOrder(tuple(self.store.shard_blocks), self.seed, WINDOW_SHARDS)
