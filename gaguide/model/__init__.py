"""Models: GPT-2's sizes; configurations and weights from a hub, a folder or a seed."""

from gaguide.model.fast import adapt_to, align_head, fuse_activations
from gaguide.model.load import ModelSource, build_model, checkpoint_activations, find_model, skeleton
from gaguide.model.shape import ModelShape, shape_of
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
    "scratch_config",
    "shape_of",
    "skeleton",
]
