"""Checkpoints, complete whenever they are visible, and their export as Hugging Face folders."""

from typing import TYPE_CHECKING

from gaguide.lazy import lazy_names

if TYPE_CHECKING:
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

__getattr__ = lazy_names(
    __name__,
    {
        "export_model": "export",
        "Checkpoint": "store",
        "CheckpointStore": "store",
        "MODEL_FOLDER": "store",
        "verify_files": "verify",
    },
)
