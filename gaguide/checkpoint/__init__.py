"""Checkpoints that exist wholly or not at all, and their export as Hugging Face folders."""

from gaguide.checkpoint.export import export_model
from gaguide.checkpoint.store import Checkpoint, CheckpointStore
from gaguide.checkpoint.verify import verify_files

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "export_model",
    "verify_files",
]
