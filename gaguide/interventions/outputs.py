"""Replace heads' outputs: by zero, by their mean over a corpus, by another example's, or by a second run's.

A knock-out by zero also removes what a head adds to every token alike, a bias that later layers rely on; one
by the mean keeps that and removes only the text-dependent part (docs/interventions.md).

Shapes: B batch, H heads, h heads of the layer that are changed, T positions, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from gaguide.interventions.attach import Head, refuse
from gaguide.model.attention_consumer import SOFTMAX_ARGUMENTS, AttentionCall, PassInputs


@dataclass(frozen=True)
class ZeroOutput:
    """Heads write nothing."""

    heads: tuple[Head, ...]
    """(layer, head) of each."""

    understands = SOFTMAX_ARGUMENTS

    def change(
        self, call: AttentionCall, inputs: PassInputs, heads: Sequence[int], out_BTHD: torch.Tensor
    ) -> torch.Tensor:
        """Zeros [1, 1, h, D]."""
        return out_BTHD.new_zeros(1, 1, len(heads), out_BTHD.shape[-1])


@dataclass(frozen=True)
class MeanOutput:
    """Heads write their mean over a corpus, the same at every token."""

    means: Mapping[Head, torch.Tensor]
    """(layer, head) → [D], as from `mean_outputs`."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads with a mean."""
        return tuple(self.means)

    understands = SOFTMAX_ARGUMENTS

    def change(
        self, call: AttentionCall, inputs: PassInputs, heads: Sequence[int], out_BTHD: torch.Tensor
    ) -> torch.Tensor:
        """The means [1, 1, h, D]."""
        return torch.stack([self.means[call.layer, head].to(out_BTHD) for head in heads])[None, None]


@dataclass(frozen=True)
class ResampleOutput:
    """Heads write, at every position, their output at that position in another sequence of the batch.

    Sequence b takes it from sequence b + shift, wrapping around: none keeps its own.
    """

    heads: tuple[Head, ...]
    """(layer, head) of each."""
    shift: int = 1
    """Distance to the other sequence, not a multiple of the batch."""

    understands = SOFTMAX_ARGUMENTS

    def change(
        self, call: AttentionCall, inputs: PassInputs, heads: Sequence[int], out_BTHD: torch.Tensor
    ) -> torch.Tensor:
        """The other sequences' outputs [B, T, h, D]."""
        if self.shift % len(out_BTHD) == 0:
            raise refuse(
                f"a batch of {len(out_BTHD)} gives no other sequence at shift {self.shift}",
                "give at least two sequences, and a shift that is not a multiple of their number",
            )
        return out_BTHD[:, :, list(heads)].roll(-self.shift, 0)


@dataclass(frozen=True)
class PatchOutput:
    """Heads write their outputs of a second run, such as that of the corrupted member of a pair."""

    outputs: Mapping[Head, torch.Tensor]
    """(layer, head) → [B, T, D], as from `record_outputs`; the second run has the same B and T."""
    positions_BT: torch.Tensor | None = None
    """bool [B, T], True where the output is replaced; None replaces it everywhere."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads with an output."""
        return tuple(self.outputs)

    understands = SOFTMAX_ARGUMENTS

    def change(
        self, call: AttentionCall, inputs: PassInputs, heads: Sequence[int], out_BTHD: torch.Tensor
    ) -> torch.Tensor:
        """The second run's outputs [B, T, h, D]."""
        new_BThD = torch.stack([self.outputs[call.layer, head].to(out_BTHD) for head in heads], 2)
        if new_BThD.shape[:2] != out_BTHD.shape[:2]:
            raise refuse(
                f"the second run has outputs {list(new_BThD.shape[:2])} [sequences, tokens], and this run "
                f"{list(out_BTHD.shape[:2])}",
                "give both runs the same number of sequences, and pad their texts to one length",
            )
        if self.positions_BT is None:
            return new_BThD
        where_BT = self.positions_BT.to(out_BTHD.device)[:, :, None, None]
        return torch.where(where_BT, new_BThD, out_BTHD[:, :, list(heads)])
