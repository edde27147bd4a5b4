"""Precisions by the names that options and settings use; torch is imported only for a dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Name → torch's name of its dtype."""


def torch_dtype(precision: str) -> torch.dtype:
    """The dtype of one of `PRECISIONS`."""
    import torch

    dtype: torch.dtype = getattr(torch, PRECISIONS[precision])
    return dtype
