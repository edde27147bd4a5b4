"""Checkpoints, complete whenever they are visible, and their export as Hugging Face folders."""

from typing import TYPE_CHECKING

from gaguide.lazy import lazy_names

if TYPE_CHECKING:
    from gaguide.checkpoint.companions import Companions, read_companions
    from gaguide.checkpoint.export import export_adapter, export_model
    from gaguide.checkpoint.store import MODEL_FOLDER, Checkpoint, CheckpointStore
    from gaguide.checkpoint.verify import verify_files

__all__ = [
    "MODEL_FOLDER",
    "Checkpoint",
    "CheckpointStore",
    "Companions",
    "export_adapter",
    "export_model",
    "read_companions",
    "verify_files",
]

__getattr__ = lazy_names(__name__)
