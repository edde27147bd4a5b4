"""The model's inputs: token ids and, where documents are isolated, their positions.

Where the data mark tokens, also the labels that count, and the marks that guidance needs.

Shapes: M sequences, T positions.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from gaguide.data.read.blocks import Blocks, are_counted, leaves_out
from gaguide.errors import Fault, UserError
from gaguide.guidance.measurement import IGNORED
from gaguide.guidance.patterns import Marks

Inputs = dict[str, torch.Tensor]
"""Keyword arguments of a model's forward pass."""


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass."""

    inputs: Inputs
    """Keyword arguments of the model."""
    marks: Marks
    """For guidance: bool [M, T] by name."""


def model_inputs(blocks: Blocks, block_ids: np.ndarray, isolate: bool, device: torch.device) -> Inputs:
    """Inputs of the blocks `block_ids` [M] on `device`: input_ids [M, T] int64.

    `isolate` adds position_ids [M, T] int64, counted from 0 in every document, which keep attention inside
    documents in a model prepared by `gaguide.model.packed.isolate_documents`. Where the loss leaves marked
    tokens out, labels [M, T] int64 are the ids with -100 in their places. A GPU copies them from pinned
    memory without making the host wait.
    """
    ids_MT = blocks.read(block_ids)
    inputs = {"input_ids": _moved(ids_MT, device)}
    if isolate:
        inputs["position_ids"] = _moved(blocks.positions(block_ids), device)
    if leaves_out(blocks):
        inputs["labels"] = _moved(np.where(are_counted(blocks, block_ids), ids_MT, IGNORED), device)
    return inputs


def count_targets(blocks: Blocks, block_ids: np.ndarray) -> int:
    """Number of tokens of blocks that the loss counts: all but the first of each and marked ones left out."""
    return int(are_counted(blocks, block_ids)[:, 1:].sum())


def guidance_marks(
    blocks: Blocks, block_ids: np.ndarray, names: tuple[str, ...], device: torch.device
) -> Marks:
    """These marks of the blocks' tokens on `device`; a `UserError` for those that the data lack."""
    if not names:
        return {}
    if faults := missing_marks(blocks, names):
        raise UserError(faults)
    marks_MT = _moved(blocks.read_marks(block_ids), device)
    return {name: (marks_MT >> blocks.marks.index(name) & 1).bool() for name in names}


def missing_marks(blocks: Blocks, names: tuple[str, ...]) -> list[Fault]:
    """The faults of marks that a plan needs and the data lack."""
    known = ", ".join(blocks.marks)
    remedy = f"choose one of {known}" if known else "build shards with --spans or --chat"
    problem = "is not a mark of the data's tokens"
    return [Fault("guidance.plan", problem, remedy, name) for name in names if name not in blocks.marks]


def _moved(read: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(read)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class InputReader:
    """The batches of a rank's micro batches, read one ahead.

    Not in a thread: a hand-over of Python's lock costs more than reading a batch from shards on this host.
    """

    def __init__(
        self, blocks: Blocks, isolate: bool, device: torch.device, marks: tuple[str, ...] = ()
    ) -> None:
        """marks: those that guidance needs."""
        self.blocks, self.isolate, self.device, self.marks = blocks, isolate, device, marks
        self._ahead: tuple[bytes, Batch] | None = None

    def read_ahead(self, block_ids: np.ndarray) -> None:
        """Read the batch of the next `take`: best where a GPU has work left and the host would wait for it.

        If it cannot be read, `take` raises the error.
        """
        with suppress(UserError):
            self._ahead = block_ids.tobytes(), self._batch(block_ids)

    def take(self, block_ids: np.ndarray) -> Batch:
        """The batch of the blocks `block_ids` [M]; raises a `UserError` for damaged shards."""
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead and ahead[0] == block_ids.tobytes() else self._batch(block_ids)

    def _batch(self, block_ids: np.ndarray) -> Batch:
        return Batch(
            model_inputs(self.blocks, block_ids, self.isolate, self.device),
            guidance_marks(self.blocks, block_ids, self.marks, self.device),
        )
