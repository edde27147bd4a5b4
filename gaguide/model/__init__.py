"""Models: GPT-2's sizes, configurations and weights from a hub, a folder or a seed."""

from gaguide.model.load import ModelSource, build_model, find_model, skeleton
from gaguide.model.sizes import SIZES, scratch_config

__all__ = ["SIZES", "ModelSource", "build_model", "find_model", "scratch_config", "skeleton"]
