"""The model's inputs: token ids and, where documents are isolated, their mask and positions.

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

    `isolate` adds attention_mask [M, 1, T, T] bool, True where key and query are of the same document and the
    key is not later, and position_ids [M, T] int64, counted from 0 in every document.
    """
    inputs = {"input_ids": torch.from_numpy(blocks.read(block_ids)).to(device)}
    if isolate:
        inputs["attention_mask"] = document_mask(torch.from_numpy(blocks.document_ids(block_ids)).to(device))
        inputs["position_ids"] = torch.from_numpy(blocks.positions(block_ids)).to(device)
    return inputs


def document_mask(document_MT: torch.Tensor) -> torch.Tensor:
    """Which keys each query may see, [M, 1, T, T] bool: those of its document that are not later."""
    same_MTT = document_MT[:, :, None] == document_MT[:, None, :]
    return same_MTT.tril_()[:, None]
