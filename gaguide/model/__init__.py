"""Models: GPT-2's sizes; configurations and weights from a hub, a folder or a seed."""

from typing import TYPE_CHECKING

from gaguide.lazy import lazy_names

if TYPE_CHECKING:
    from gaguide.model.fast import adapt_to, align_head, fuse_activations
    from gaguide.model.load import (
        ModelSource,
        build_model,
        checkpoint_activations,
        find_model,
        saved_model,
        skeleton,
        with_vocabulary,
    )
    from gaguide.model.shape import ModelShape, gpt2_shape, shape_of
    from gaguide.model.sizes import SIZES, scratch_config

__all__ = [
    "SIZES",
    "ModelShape",
    "ModelSource",
    "adapt_to",
    "align_head",
    "build_model",
    "checkpoint_activations",
    "find_model",
    "fuse_activations",
    "gpt2_shape",
    "saved_model",
    "scratch_config",
    "shape_of",
    "skeleton",
    "with_vocabulary",
]

__getattr__ = lazy_names(__name__)
