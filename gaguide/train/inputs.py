"""The model's inputs: token ids and, where documents are isolated, their mask and positions.

Shapes: M sequences, T positions.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from gaguide.data.read.blocks import Blocks

Inputs = dict[str, torch.Tensor]
"""Keyword arguments of a model's forward pass."""
_DOCUMENTS = "documents"  # from which the mask is made on the device: it is T times smaller


def model_inputs(blocks: Blocks, block_ids: np.ndarray, isolate: bool, device: torch.device) -> Inputs:
    """Inputs of the blocks `block_ids` [M] on `device`: input_ids [M, T] int64.

    `isolate` adds attention_mask [M, 1, T, T] bool, True where key and query are of the same document and the
    key is not later, and position_ids [M, T] int64, counted from 0 in every document.
    """
    return _to_device(_read(blocks, block_ids, isolate, device.type == "cuda"), device)


class InputReader:
    """The inputs of a rank's micro batches, read in a thread before they are asked for."""

    def __init__(self, blocks: Blocks, isolate: bool, device: torch.device) -> None:
        self.blocks, self.isolate, self.device = blocks, isolate, device
        self._thread = ThreadPoolExecutor(1, "reader")
        self._ahead: tuple[bytes, Future[Inputs]] | None = None

    def begin(self, block_ids: np.ndarray) -> None:
        """Begin to read the blocks that are asked for next."""
        pinned = self.device.type == "cuda"
        reading = self._thread.submit(_read, self.blocks, block_ids, self.isolate, pinned)
        self._ahead = block_ids.tobytes(), reading

    def take(self, block_ids: np.ndarray) -> Inputs:
        """As `model_inputs`, which a GPU receives while it computes; `UserError` of damaged shards."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] != block_ids.tobytes():
            return model_inputs(self.blocks, block_ids, self.isolate, self.device)
        return _to_device(ahead[1].result(), self.device)

    def close(self) -> None:
        """Wait for what is being read, if anything is."""
        self._thread.shutdown(cancel_futures=True)


def _read(blocks: Blocks, block_ids: np.ndarray, isolate: bool, pinned: bool) -> Inputs:
    """What the inputs are made from, in host memory, from which a GPU copies without the host if `pinned`."""
    read = {"input_ids": torch.from_numpy(blocks.read(block_ids))}
    if isolate:
        read[_DOCUMENTS] = torch.from_numpy(blocks.document_ids(block_ids))
        read["position_ids"] = torch.from_numpy(blocks.positions(block_ids))
    return {name: tensor.pin_memory() if pinned else tensor for name, tensor in read.items()}


def _to_device(read: Inputs, device: torch.device) -> Inputs:
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in read.items()}
    if _DOCUMENTS in inputs:
        inputs["attention_mask"] = document_mask(inputs.pop(_DOCUMENTS))
    return inputs


def document_mask(document_MT: torch.Tensor) -> torch.Tensor:
    """Which keys each query may see, [M, 1, T, T] bool: those of its document that are not later."""
    same_MTT = document_MT[:, :, None] == document_MT[:, None, :]
    return same_MTT.tril_()[:, None]
