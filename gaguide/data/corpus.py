"""A run's data, whatever its origin: blocks to train on, held-out blocks, their order, their tokenizer.

The one place where building and reading meet: a source is read while it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gaguide.data.build.build import check_same_build
from gaguide.data.build.request import BuildRequest, PreparedBuild, Progress, check_request, prepare_build
from gaguide.data.format.manifest import TRAIN, VALIDATION, is_complete
from gaguide.data.format.tokenizer import load_tokenizer, vocabulary_size
from gaguide.data.read.blocks import Blocks, BlockStore
from gaguide.data.read.growing import BuildIdentity, FirstHeldOut, GrowingStore, SourceOrder
from gaguide.data.read.mixture import MixedOrder, MixedStore
from gaguide.data.read.order import BlockOrder, Order
from gaguide.data.read.verify import check_tokenizer
from gaguide.errors import FaultCollector, UserError, reworded
from gaguide.files import hash_json
from gaguide.log import is_first_process, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Options of `gaguide data build` → fields of a run's settings.
_SOURCE_FIELDS = {
    "--source": "data.source.files",
    "--tokenizer": "data.source.tokenizer",
    "tokenizer": "data.source.tokenizer",
    "--split": "data.source.split",
    "--revision": "data.source.revision",
    "--text-field": "data.source.text_field",
    "--spans": "data.source.spans",
    "--chat": "data.source.chat",
    "--template": "data.source.template",
    "--output": "data.shards",
    "--bos": "data.source.bos",
    "--separator": "data.source.separator",
    "--max-dropped": "data.source.max_dropped",
}


@dataclass(frozen=True)
class Corpus:
    """The data of a training run."""

    blocks: Blocks
    """Blocks to train on."""
    held_out: Blocks
    """Blocks to validate on."""
    order: Order
    """Order of the training blocks."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer that made the ids."""
    vocab_size: int
    """Ids lie in [0, vocab_size)."""
    eos_token_id: int
    """Id that ends every document."""
    tokenizer_fingerprint: str
    """Fingerprint of the tokenizer."""
    fingerprint: str
    """Identifies the data, to compare it when a run is resumed."""
    build: PreparedBuild | None = None
    """The build that has to run during training, if the data is a source."""

    @property
    def is_complete(self) -> bool:
        """Whether all blocks exist, so that `len(blocks)` does not wait."""
        return not isinstance(self.blocks, GrowingStore) or self.blocks.is_complete

    @property
    def sources(self) -> tuple[str, ...]:
        """Descriptions of the text that the shards were made from, one per folder."""
        if self.build is not None:
            return (self.build.source.description,)
        stores = self.blocks.stores if isinstance(self.blocks, MixedStore) else (self.blocks,)
        return tuple(store.manifest.source for store in stores if isinstance(store, BlockStore))

    def look_ahead(self, position: int) -> None:
        """Prefetch the blocks that training reads from `position` of the order on."""
        self.blocks.look_ahead(self.order, position)


def folder_corpus(folder: Path | str, block_length: int, seed: int, cache_bytes: int) -> Corpus:
    """The shards of one folder or address; faults have the field `data.shards`."""
    blocks, held_out = _open(folder, "data.shards", block_length, cache_bytes)
    # Growing windows for local folders as well: the location of shards must not change the order.
    order = BlockOrder(blocks.shard_blocks, seed, growing=True)
    with _with_fields({"data": "data.shards"}):
        return _corpus(blocks, held_out, order, blocks.manifest.fingerprint)


def mixture_corpus(
    parts: Sequence[tuple[str, float]], block_length: int, seed: int, cache_bytes: int
) -> Corpus:
    """Several folders or addresses with their weights; faults have fields `data.mixture.N.…`, all at once."""
    opened: list[tuple[BlockStore, BlockStore]] = []
    with FaultCollector() as faults:
        for at, (folder, _) in enumerate(parts):
            with faults.catching():
                opened.append(_open(folder, f"data.mixture.{at}.shards", block_length, cache_bytes))
    with _with_fields({"data": "data.mixture"}):
        blocks = MixedStore([train for train, _ in opened])
    held_out = MixedStore([validation for _, validation in opened])
    weights = tuple(weight for _, weight in parts)
    with _with_fields({"weight": "data.mixture weight"}):
        order = MixedOrder(blocks.part_blocks, weights, seed, growing=True)
    fingerprints = [store.manifest.fingerprint for store in blocks.stores]
    with _with_fields({"data": "data.mixture.0.shards"}):  # whose tokenizer is read for all
        return _corpus(blocks, held_out, order, hash_json(fingerprints))


def _say_stage(progress: Progress) -> None:
    """Print why a source takes long: finding and hashing its files. Rank 0 only."""
    if is_first_process():
        say(f"data.source: {progress.stage}")


def source_corpus(
    request: BuildRequest,
    block_length: int,
    seed: int,
    held_out_blocks: int,
    on_progress: Callable[[Progress], None] = _say_stage,
) -> Corpus:
    """A source that is read while it is built into `request.output`; does not start the build.

    `UserError` if the folder is complete and holds shards of another request, or of other content.
    """
    with _with_fields(_SOURCE_FIELDS):
        check_request(request)
        build = prepare_build(request, on_progress)
        if is_complete(request.output):
            check_same_build(request.output, build)
    identity = BuildIdentity(
        request.output, len(build.parts), build.build_id, build.fingerprint, request.marks
    )
    blocks = GrowingStore(identity, block_length)
    return Corpus(
        blocks=blocks,
        held_out=FirstHeldOut(blocks, held_out_blocks),
        order=SourceOrder(blocks, seed),
        tokenizer=build.tokenizer,
        vocab_size=vocabulary_size(build.tokenizer),
        eos_token_id=build.ids.eos,
        tokenizer_fingerprint=build.fingerprint,
        fingerprint=build.build_id,
        build=build,
    )


def _open(
    folder: Path | str, field: str, block_length: int, cache_bytes: int
) -> tuple[BlockStore, BlockStore]:
    """Training and held-out blocks of one folder; the faults of both are raised at once."""
    stores = []
    with FaultCollector() as faults:
        for split in (TRAIN, VALIDATION):
            with faults.catching(), _with_fields({"data": field}):
                stores.append(BlockStore(folder, split, block_length, cache_bytes))
    return stores[0], stores[1]


def _corpus(
    blocks: BlockStore | MixedStore, held_out: BlockStore | MixedStore, order: Order, fingerprint: str
) -> Corpus:
    if wrong := check_tokenizer(blocks.tokenizer_folder, blocks.manifest):
        remedy = "copy the folder again, or rebuild it; `gaguide data verify` compares all of its files"
        raise UserError.of("data", f"{wrong.file} is {wrong.problem}", remedy, str(blocks.tokenizer_folder))
    return Corpus(
        blocks=blocks,
        held_out=held_out,
        order=order,
        tokenizer=load_tokenizer(blocks.tokenizer_folder),
        vocab_size=blocks.manifest.vocab_size,
        eos_token_id=blocks.manifest.eos_token_id,
        tokenizer_fingerprint=blocks.manifest.tokenizer_fingerprint,
        fingerprint=fingerprint,
    )


def _with_fields(fields: Mapping[str, str]) -> AbstractContextManager[None]:
    """Inside, the fields of faults are renamed to those of a run's settings."""
    return reworded(lambda fault: replace(fault, field=fields.get(fault.field, fault.field)))
