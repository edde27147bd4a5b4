"""What the model is called with: token ids, and where documents are isolated their mask and positions.

Shapes: M sequences, T positions.
"""

from __future__ import annotations

import numpy as np
import torch

from gaguide.data.read.blocks import Blocks

Inputs = dict[str, torch.Tensor]
"""Keyword arguments of a model's forward pass."""


def model_inputs(blocks: Blocks, block_ids: np.ndarray, isolate: bool, device: torch.device) -> Inputs:
    """Inputs of the blocks `block_ids` [M] on `device`: input_ids [M, T] int64.

    With `isolate` also attention_mask [M, 1, T, T] bool, True where key and query belong to one document and
    the key is not later, and position_ids [M, T] int64 counted from 0 in every document.
    """
    inputs = {"input_ids": torch.from_numpy(blocks.read(block_ids)).to(device)}
    if isolate:
        inputs["attention_mask"] = document_mask(torch.from_numpy(blocks.document_ids(block_ids)).to(device))
        inputs["position_ids"] = torch.from_numpy(blocks.positions(block_ids)).to(device)
    return inputs


def document_mask(document_MT: torch.Tensor) -> torch.Tensor:
    """Which key each query may see, [M, 1, T, T] bool: of its own document, and not later."""
    same_MTT = document_MT[:, :, None] == document_MT[:, None, :]
    return same_MTT.tril_()[:, None]
