"""Divide a layer's heads into chosen ones and the rest, and join their outputs in the model's order.

Shapes: B batch, H heads, G key/value heads, h chosen heads, T positions, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class HeadSplit:
    """The chosen heads of a layer, and the rest."""

    chosen: tuple[int, ...]
    """Chosen heads, ascending, at least one."""
    rest: tuple[int, ...]
    """All other heads, ascending."""
    groups: int
    """Query heads that share one key/value head; 1 without grouping."""

    @classmethod
    def choose(cls, chosen: tuple[int, ...], n_heads: int, groups: int) -> HeadSplit:
        """The split of `n_heads` heads; `chosen` must be ascending."""
        return cls(chosen, tuple(head for head in range(n_heads) if head not in chosen), groups)

    def divide(
        self, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """(q, k, v) of the chosen heads, each [B, h, T, D], and of the rest; keys are repeated per head."""
        if self.groups > 1:
            k_BGTD, v_BGTD = (x.repeat_interleave(self.groups, 1) for x in (k_BGTD, v_BGTD))
        qkv = (q_BHTD, k_BGTD, v_BGTD)
        if torch.compiler.is_compiling():  # which fuses autograd's slicing
            parts = tuple(_take(x, heads, 1) for heads in (self.chosen, self.rest) for x in qkv)
        else:
            parts = _Divide.apply(self, *qkv)
        return parts[:3], parts[3:]

    def join(self, chosen_BThD: torch.Tensor, rest_BTHD: torch.Tensor) -> torch.Tensor:
        """Both outputs as [B, T, H, D], heads in the model's order."""
        first = self.chosen[0]
        if first == 0 and _is_run(self.chosen):
            return torch.cat([chosen_BThD, rest_BTHD], 2)
        if _is_run(self.chosen):
            return torch.cat([rest_BTHD[:, :, :first], chosen_BThD, rest_BTHD[:, :, first:]], 2)
        order = self.chosen + self.rest
        joined = torch.cat([chosen_BThD, rest_BTHD], 2)
        return _take(joined, tuple(order.index(head) for head in range(len(order))), 2)


class _Divide(torch.autograd.Function):
    """q, k and v of the chosen heads, then of the rest; backward joins the gradients of each in one
    operation.

    Autograd's own slicing would turn each of the six gradients into a tensor of zeros with a part filled in.
    The joined gradients have the memory layout [B, T, H, D], so that the projection need not copy them.
    """

    @staticmethod
    def forward(ctx: Any, split: HeadSplit, *qkv_BHTD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.split = split
        return tuple(_take(x, heads, 1) for heads in (split.chosen, split.rest) for x in qkv_BHTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        parts_BThD = [grad.transpose(1, 2) for grad in grads]
        joined = (ctx.split.join(chosen, rest) for chosen, rest in zip(parts_BThD[:3], parts_BThD[3:]))
        return (None, *(grad_BTHD.transpose(1, 2) for grad_BTHD in joined))


def _is_run(heads: tuple[int, ...]) -> bool:
    return heads == tuple(range(heads[0], heads[0] + len(heads)))


def _take(x: torch.Tensor, heads: tuple[int, ...], dim: int) -> torch.Tensor:
    """Heads along `dim`: a view where they are consecutive, else a copy."""
    if not heads or _is_run(heads):
        return x.narrow(dim, heads[0] if heads else 0, len(heads))
    return x.index_select(dim, torch.tensor(heads).to(x.device, non_blocking=True))
