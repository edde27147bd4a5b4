"""The data plane: text to shards (`build`), shards to blocks in training order (`read`), their `format`."""

from typing import TYPE_CHECKING

from gaguide.lazy import lazy_names

if TYPE_CHECKING:
    from gaguide.data.build.build import BuildRequest, Progress, build_shards
    from gaguide.data.build.demo_corpus import build_embedded_corpus
    from gaguide.data.format.manifest import Manifest, ShardInfo, read_manifest
    from gaguide.data.format.tokenizer import load_tokenizer, tokenizer_fingerprint
    from gaguide.data.read.blocks import BlockStore
    from gaguide.data.read.mixture import MixedOrder, MixedStore
    from gaguide.data.read.order import BlockOrder, Order, rank_micro_batches, steps_for_epochs

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
    "build_embedded_corpus",
    "build_shards",
    "load_tokenizer",
    "rank_micro_batches",
    "read_manifest",
    "steps_for_epochs",
    "tokenizer_fingerprint",
]

__getattr__ = lazy_names(__name__)
