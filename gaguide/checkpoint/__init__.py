"""Checkpoints, complete whenever they are visible, and their export as Hugging Face folders."""

from gaguide.checkpoint.export import export_model
from gaguide.checkpoint.store import MODEL_FOLDER, Checkpoint, CheckpointStore
from gaguide.checkpoint.verify import verify_files

__all__ = [
    "MODEL_FOLDER",
    "Checkpoint",
    "CheckpointStore",
    "export_model",
    "verify_files",
]
