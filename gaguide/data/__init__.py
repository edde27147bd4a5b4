"""The data plane: from text to shards, from shards to blocks, and the order in which blocks are seen."""

from gaguide.data.blocks import BlockStore
from gaguide.data.build import BuildRequest, Progress, build
from gaguide.data.embedded import embedded_corpus
from gaguide.data.manifest import Manifest, ShardInfo, read_manifest
from gaguide.data.mixture import MixedOrder, MixedStore
from gaguide.data.order import BlockOrder, Order, rank_micro_batches, steps_for_epochs
from gaguide.data.tokenize import load_tokenizer, tokenizer_fingerprint

__all__ = [
    "BlockOrder",
    "BlockStore",
    "BuildRequest",
    "Manifest",
    "MixedOrder",
    "MixedStore",
    "Order",
    "Progress",
    "ShardInfo",
    "build",
    "embedded_corpus",
    "load_tokenizer",
    "rank_micro_batches",
    "read_manifest",
    "steps_for_epochs",
    "tokenizer_fingerprint",
]
