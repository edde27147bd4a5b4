"""The model's inputs: token ids and, where documents are isolated, their mask and positions.

Shapes: M sequences, T positions.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch

from gaguide.data.read.blocks import Blocks
from gaguide.errors import UserError

Inputs = dict[str, torch.Tensor]
"""Keyword arguments of a model's forward pass."""


def model_inputs(blocks: Blocks, block_ids: np.ndarray, isolate: bool, device: torch.device) -> Inputs:
    """Inputs of the blocks `block_ids` [M] on `device`: input_ids [M, T] int64.

    `isolate` adds attention_mask [M, 1, T, T] bool, True where key and query are of the same document and the
    key is not later, and position_ids [M, T] int64, counted from 0 in every document. A GPU copies them from
    pinned memory without making the host wait.
    """

    def moved(read: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(read)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    inputs = {"input_ids": moved(blocks.read(block_ids))}
    if isolate:
        inputs["attention_mask"] = document_mask(moved(blocks.document_ids(block_ids)))
        inputs["position_ids"] = moved(blocks.positions(block_ids))
    return inputs


class InputReader:
    """The inputs of a rank's micro batches, of which one is read before it is asked for.

    Not in a thread: a hand-over of Python's lock costs more than reading a batch from shards on this host.
    """

    def __init__(self, blocks: Blocks, isolate: bool, device: torch.device) -> None:
        self.blocks, self.isolate, self.device = blocks, isolate, device
        self._ahead: tuple[bytes, Inputs] | None = None

    def read_ahead(self, block_ids: np.ndarray) -> None:
        """Read what `take` is called for next: best where a GPU has work left and the host would wait for it.

        Where it cannot be read, `take` says so.
        """
        with suppress(UserError):
            self._ahead = block_ids.tobytes(), self._inputs(block_ids)

    def take(self, block_ids: np.ndarray) -> Inputs:
        """As `model_inputs`; raises a `UserError` of damaged shards."""
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead and ahead[0] == block_ids.tobytes() else self._inputs(block_ids)

    def _inputs(self, block_ids: np.ndarray) -> Inputs:
        return model_inputs(self.blocks, block_ids, self.isolate, self.device)


def document_mask(document_MT: torch.Tensor) -> torch.Tensor:
    """Which keys each query may see, [M, 1, T, T] bool: those of its document that are not later."""
    same_MTT = document_MT[:, :, None] == document_MT[:, None, :]
    return same_MTT.tril_()[:, None]
