"""Checkpoints that exist wholly or not at all, and their export as Hugging Face folders."""

from gaguide.checkpoint.export import export_model
from gaguide.checkpoint.store import Checkpoint, CheckpointStore
from gaguide.checkpoint.verify import verify_files
from gaguide.checkpoint.writing import MODEL, STATE_TAG, Written, write_engine

__all__ = [
    "MODEL",
    "STATE_TAG",
    "Checkpoint",
    "CheckpointStore",
    "Written",
    "export_model",
    "verify_files",
    "write_engine",
]
