"""Shards that are read while they are built: training from a source without a build step before it.

The build makes shards in the order of the source and writes each atomically; a shard that does not exist yet
is waited for. The order of epoch 0 at a position needs only the shards up to that position, so it does not
depend on whether these exist already, or on who builds them:

    shards in the order of the source, in windows of 1, 2, 4, 8, 8, 8 … shards, blocks shuffled in a window

Later epochs follow `BlockOrder` over all shards.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gaguide.data.format.manifest import (
    BUILD_FOLDER,
    TRAIN,
    VALIDATION,
    ShardInfo,
    is_complete,
    read_manifest,
)
from gaguide.data.format.pieces import FAILURE_FILE, read_pieces
from gaguide.data.format.shards import DamagedShardError, Shard, open_shard, shard_fault, shard_name
from gaguide.data.read.blocks import ShardBlocks, find_blocks
from gaguide.data.read.order import OPEN_SHARDS, WINDOW_SHARDS, BlockOrder, derived_key, keyed_permutation
from gaguide.errors import UserError
from gaguide.files import hash_json

_POLL_SECONDS = 0.2
_WINDOW_SALT = 0x67726F77
_ALGORITHM = "source-order/1"


@dataclass(frozen=True)
class BuildIdentity:
    """Properties of a build in progress that its reader needs."""

    folder: Path
    """Folder of the finished shards."""
    parts: int
    """Number of parts of the source."""
    build_id: str
    """Identifies the request and its source."""
    tokenizer_fingerprint: str
    """Fingerprint of the tokenizer."""
    marks: tuple[str, ...] = ()
    """Names of the marks that tokens get."""


class GrowingStore(ShardBlocks):
    """The training blocks of a build in progress, in the order of its source; `len` waits for its end.

    Also opens the shards of its held-out documents, for `FirstHeldOut`: one object watches the folder.
    """

    def __init__(self, build: BuildIdentity, block_length: int) -> None:
        super().__init__(block_length, OPEN_SHARDS, build.marks)
        self.build = build
        self.is_complete = False
        self.shards: dict[str, list[ShardInfo]] = {TRAIN: [], VALIDATION: []}
        # Number of complete parts, and of their shards.
        self._complete_parts, self._complete_shards = 0, {TRAIN: 0, VALIDATION: 0}

    def __len__(self) -> int:
        self.wait(lambda: False)
        return sum(self.shard_blocks)

    @property
    def shard_blocks(self) -> list[int]:
        """Number of blocks of each shard that exists."""
        return [info.tokens // self.block_length for info in self.shards[TRAIN]]

    def wait(self, enough: Callable[[], bool]) -> None:
        """Wait until `enough()` or the end of the build; `UserError` if the build has failed."""
        while not (self.is_complete or enough()):
            self._refresh()
            if self.is_complete or enough():
                return
            failure = self.build.folder / BUILD_FOLDER / FAILURE_FILE
            if failure.exists():
                problem = f"building its shards failed: {failure.read_text('utf-8')}"
                remedy = "correct it and start again; complete shards are kept"
                raise UserError.of("data.source", problem, remedy)
            time.sleep(_POLL_SECONDS)

    def open(self, split: str, index: int) -> Shard:
        """Map a shard that exists, under its temporary or its final name."""
        folder, info = self.build.folder, self.shards[split][index]
        final = folder / (shard_name(split, index) if split == TRAIN else info.file)
        paths = [final, folder / BUILD_FOLDER / info.file]
        for _ in range(3):  # the end of a build renames files at any moment
            for path in paths:
                if path.exists():
                    try:
                        return open_shard(path, info, self.build.tokenizer_fingerprint)
                    except DamagedShardError as error:
                        if not path.exists():  # renamed since the check above
                            continue
                        raise UserError(shard_fault(str(folder), path.name, str(error))) from None
        raise UserError(shard_fault(str(folder), info.file, "missing"))

    def _refresh(self) -> None:
        """Update `shards` from the folder; the number of shards never decreases."""
        if is_complete(self.build.folder):
            manifest = read_manifest(self.build.folder)
            if manifest.build_id != self.build.build_id:
                problem = f"the folder contains other shards (of {manifest.source})"
                raise UserError.of("data.shards", problem, "name another folder", str(self.build.folder))
            self.shards = {split: list(manifest.splits.get(split, ())) for split in (TRAIN, VALIDATION)}
            self.is_complete = True
            return
        for part in range(self._complete_parts, self.build.parts):
            pieces = read_pieces(self.build.folder / BUILD_FOLDER, part)
            for split, known in self.shards.items():
                found = [piece.shards[split] for piece in pieces if split in piece.shards]
                # The end of the build deletes the records; known shards stay until the manifest is read.
                known += found[len(known) - self._complete_shards[split] :]
            if not (pieces and pieces[-1].last):
                return
            self._complete_parts += 1
            self._complete_shards = {split: len(known) for split, known in self.shards.items()}

    def _locate(self, block_ids: np.ndarray) -> tuple[list[int], list[int]]:
        starts = np.concatenate([[0], np.cumsum(self.shard_blocks)]).astype(np.int64)
        return find_blocks(block_ids, starts, self.block_length)

    def _open_shard(self, index: int) -> Shard:
        return self.open(TRAIN, index)


class FirstHeldOut(ShardBlocks):
    """The first `limit` blocks of a build's held-out documents, concatenated; waits for them at first use.

    The first ones, because a sample of all of them would have to wait for the end of the build.
    """

    def __init__(self, store: GrowingStore, limit: int) -> None:
        super().__init__(store.block_length, 1, store.marks)
        self.store, self.limit = store, limit

    def __len__(self) -> int:
        return len(self._shard(0).tokens) // self.block_length

    def _locate(self, block_ids: np.ndarray) -> tuple[list[int], list[int]]:
        return find_blocks(block_ids, np.array([0, len(self)]), self.block_length)

    def _open_shard(self, index: int) -> Shard:
        """All documents as one shard in memory."""
        tokens = self.limit * self.block_length
        self.store.wait(lambda: sum(info.tokens for info in self.store.shards[VALIDATION]) >= tokens)
        try:
            return self._concatenate(tokens)
        except UserError:
            if self.store.is_complete:
                raise
        self.store.wait(lambda: False)  # the end of the build has joined the shards that we tried to open
        return self._concatenate(tokens)

    def _concatenate(self, limit: int) -> Shard:
        tokens: list[np.ndarray] = []
        marks: list[np.ndarray] = []
        ends: list[np.ndarray] = []
        total = 0
        for index in range(len(self.store.shards[VALIDATION])):
            if total < limit:
                shard = self.store.open(VALIDATION, index)
                tokens.append(np.array(shard.tokens))
                marks += [] if shard.marks is None else [np.array(shard.marks)]
                ends.append(shard.offsets[1:].astype(np.int64) + total)
                total += len(shard.tokens)
        if total < self.block_length:
            problem = f"gives {total} held-out tokens, less than one block of {self.block_length}"
            remedy = "increase it, or use more text"
            raise UserError.of("data.source.validation_fraction", problem, remedy)
        # Exactly `limit` tokens: the result must not depend on how many exist already.
        offsets = np.concatenate([[0], *ends])
        marked = np.concatenate(marks)[:limit] if marks else None
        return Shard(np.concatenate(tokens)[:limit], offsets[offsets <= limit], "", marked)


@dataclass(frozen=True)
class SourceOrder:
    """Order of the blocks of a `GrowingStore`, determined by the seed and the content of the source."""

    store: GrowingStore
    """The blocks."""
    seed: int
    """Seed of the shuffle."""

    @property
    def total_blocks(self) -> int:
        """Number of blocks in an epoch; waits for the end of the build."""
        return len(self.store)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the order, to compare it when a run is resumed."""
        identity = [_ALGORITHM, self.seed, self.store.block_length, self.store.build.build_id]
        return hash_json(identity)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Global block ids, int64, at `positions` (any shape, int64 ≥ 0); waits for the shards they need."""
        positions = np.asarray(positions, np.int64)
        if positions.size and positions.min() < 0:
            raise ValueError("positions must not be negative")
        ids = np.empty_like(positions)
        pending = np.ones(positions.shape, bool)
        start, first, size, window = 0, 0, 1, 0
        more, blocks = True, self.store.shard_blocks
        while more and pending.any():
            if len(blocks) < first + size:
                more, blocks = self._wait_for_shards(first + size), self.store.shard_blocks
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
                problem = f"none of its shards has a block of {self.store.block_length} tokens"
                raise UserError.of("data.source", problem, "use shorter blocks or more text")
            ids[pending] = self._later_epochs.at(positions[pending])
        return ids

    def _wait_for_shards(self, count: int) -> bool:
        """Wait until `count` shards exist; False if the source has fewer."""
        self.store.wait(lambda: len(self.store.shards[TRAIN]) >= count)
        return len(self.store.shards[TRAIN]) >= count

    @cached_property
    def _later_epochs(self) -> BlockOrder:
        return BlockOrder(tuple(self.store.shard_blocks), self.seed, WINDOW_SHARDS)
