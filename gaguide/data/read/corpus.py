"""A run's data, whatever it comes from: blocks to train on, blocks held out, their order, their tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gaguide.data.build.build import BuildRequest, Work, check_request, plan
from gaguide.data.format.tokenizer import load_tokenizer, vocabulary_size
from gaguide.data.read.blocks import Blocks, BlockStore
from gaguide.data.read.growing import FirstHeldOut, GrowingShards, GrowingStore, SourceOrder
from gaguide.data.read.mixture import MixedOrder, MixedStore
from gaguide.data.read.order import BlockOrder, Order
from gaguide.errors import Fault, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
_SOURCE_FIELDS = {
    "--source": "data.source.files",
    "--tokenizer": "data.source.tokenizer",
    "tokenizer": "data.source.tokenizer",
    "--split": "data.source.split",
    "--revision": "data.source.revision",
    "--text-field": "data.source.text_field",
    "--output": "data.shards",
}


@dataclass(frozen=True)
class Corpus:
    """What training needs of its data.

    fingerprint: of the data, for the check at resume; work: what has to be built while training, or None.
    """

    blocks: Blocks
    held_out: Blocks
    order: Order
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    eos_token_id: int
    tokenizer_fingerprint: str
    fingerprint: str
    work: Work | None = None

    @property
    def known(self) -> bool:
        """Whether all of it is there, so that `len(blocks)` does not wait."""
        return not isinstance(self.blocks, GrowingStore) or self.blocks.shards.complete

    def look_ahead(self, position: int) -> None:
        """Say that training stands at `position` of the order, so that what it reads next is fetched."""
        self.blocks.look_ahead(self.order, position)


def folder_corpus(folder: Path | str, block_length: int, seed: int, cache_bytes: int) -> Corpus:
    """The shards of one folder or address. `UserError` with the field `data.shards`."""
    opened = _open(folder, "data.shards", block_length, cache_bytes)
    # Growing windows even for folders on a disk: where shards lie must not change the order.
    order = BlockOrder(opened[0].shard_blocks, seed, growing=True)
    return _corpus(*opened, order, opened[0].manifest.fingerprint, opened[0].tokenizer_folder)


def mixture_corpus(
    parts: Sequence[tuple[str, float]], block_length: int, seed: int, cache_bytes: int
) -> Corpus:
    """Several folders or addresses with their weights; all faults at once, by field `data.mixture.N.…`."""
    opened: list[tuple[BlockStore, BlockStore]] = []
    faults: list[Fault] = []
    for at, (folder, _) in enumerate(parts):
        try:
            opened.append(_open(folder, f"data.mixture.{at}.shards", block_length, cache_bytes))
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)
    blocks = _named(lambda: MixedStore([train for train, _ in opened]), {"data": "data.mixture"})
    held_out = MixedStore([held for _, held in opened])
    weights = tuple(weight for _, weight in parts)
    order = _named(
        lambda: MixedOrder(blocks.part_blocks, weights, seed, growing=True), {"weight": "data.mixture weight"}
    )
    fingerprints = [store.manifest.fingerprint for store in blocks.stores]
    fingerprint = hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()
    return _corpus(blocks, held_out, order, fingerprint, blocks.tokenizer_folder)


def source_corpus(request: BuildRequest, block_length: int, seed: int, held_out_blocks: int) -> Corpus:
    """A source that is built into `request.output` while it is read; begins no build."""

    def prepare() -> Work:
        check_request(request)
        return plan(request, lambda progress: None)

    work = _named(prepare, _SOURCE_FIELDS)
    shards = GrowingShards(work)
    blocks = GrowingStore(shards, block_length)
    return Corpus(
        blocks,
        FirstHeldOut(shards, block_length, held_out_blocks),
        SourceOrder(blocks, seed),
        work.tokenizer,
        vocabulary_size(work.tokenizer),
        int(work.tokenizer.eos_token_id),
        work.fingerprint,
        work.build_id,
        work,
    )


def _open(
    folder: Path | str, field: str, block_length: int, cache_bytes: int
) -> tuple[BlockStore, BlockStore]:
    """Training and held-out blocks of one folder; faults of both at once."""
    faults: list[Fault] = []
    stores = []
    for split in ("train", "validation"):
        try:
            stores.append(
                _named(lambda: BlockStore(folder, split, block_length, cache_bytes), {"data": field})  # noqa: B023
            )
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)
    return stores[0], stores[1]


def _corpus(
    blocks: BlockStore | MixedStore,
    held_out: BlockStore | MixedStore,
    order: Order,
    fingerprint: str,
    tokenizer: Path,
) -> Corpus:
    manifest = blocks.manifest
    return Corpus(
        blocks,
        held_out,
        order,
        load_tokenizer(tokenizer),
        manifest.vocab_size,
        manifest.eos_token_id,
        manifest.tokenizer_fingerprint,
        fingerprint,
    )


def _named(make: Callable[[], T], fields: dict[str, str]) -> T:
    """Faults in the words of a run's configuration."""
    try:
        return make()
    except UserError as error:
        raise UserError(
            replace(fault, field=fields.get(fault.field, fault.field)) for fault in error.faults
        ) from None
