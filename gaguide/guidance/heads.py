"""Splitting a layer's heads into guided ones and the rest, and joining their outputs in the model's order.

Shapes: B batch, H heads, G key/value heads, h guided heads, T positions, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class HeadSplit:
    """Which heads are guided; `groups` query heads share one key/value head (1 without grouping)."""

    guided: tuple[int, ...]
    rest: tuple[int, ...]
    groups: int

    @classmethod
    def choose(cls, guided: tuple[int, ...], n_heads: int, groups: int) -> HeadSplit:
        """Split `n_heads` heads; `guided` is ascending."""
        return cls(guided, tuple(head for head in range(n_heads) if head not in guided), groups)

    @property
    def as_module(self) -> SimpleNamespace:
        """What SDPA reads of an attention module, for the rest: causal, keys already one a head."""
        return SimpleNamespace(is_causal=True)

    def measured(self, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The guided heads' queries and keys [B, h, T, D], for measuring alone."""
        keys = tuple(head // self.groups for head in self.guided)
        return _take(q_BHTD, self.guided, 1), _take(k_BGTD, keys, 1)

    def divide(
        self, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """(q, k, v) of the guided heads, each [B, h, T, D], and of the other heads; keys are one a head."""
        if self.groups > 1:
            k_BGTD, v_BGTD = (x.repeat_interleave(self.groups, 1) for x in (k_BGTD, v_BGTD))
        parts = _Divide.apply(self, q_BHTD, k_BGTD, v_BGTD)
        return parts[:3], parts[3:]

    def join(self, guided_BThD: torch.Tensor, rest_BTHD: torch.Tensor) -> torch.Tensor:
        """Both outputs as [B, T, H, D], heads in the model's order."""
        first = self.guided[0]
        if first == 0 and _is_run(self.guided):
            return torch.cat([guided_BThD, rest_BTHD], 2)
        if _is_run(self.guided):
            return torch.cat([rest_BTHD[:, :, :first], guided_BThD, rest_BTHD[:, :, first:]], 2)
        order = self.guided + self.rest
        joined = torch.cat([guided_BThD, rest_BTHD], 2)
        return _take(joined, tuple(order.index(head) for head in range(len(order))), 2)


class _Divide(torch.autograd.Function):
    """q, k and v of the guided heads, then of the rest; backward joins the gradients of each in one go.

    As slices of autograd's own each of the six would become a tensor of zeros with a part filled in. The
    gradients are laid out [B, T, H, D], so that they need not be copied for the projection.
    """

    @staticmethod
    def forward(ctx: Any, split: HeadSplit, *qkv_BHTD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.split = split
        return tuple(_take(x, heads, 1) for heads in (split.guided, split.rest) for x in qkv_BHTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        parts_BThD = [grad.transpose(1, 2) for grad in grads]
        joined = (ctx.split.join(guided, rest) for guided, rest in zip(parts_BThD[:3], parts_BThD[3:]))
        return (None, *(grad_BTHD.transpose(1, 2) for grad_BTHD in joined))


def _is_run(heads: tuple[int, ...]) -> bool:
    return heads == tuple(range(heads[0], heads[0] + len(heads)))


def _take(x: torch.Tensor, heads: tuple[int, ...], dim: int) -> torch.Tensor:
    """Heads along `dim`: a view where they are consecutive, else a copy."""
    if not heads or _is_run(heads):
        return x.narrow(dim, heads[0] if heads else 0, len(heads))
    return x.index_select(dim, torch.tensor(heads).to(x.device, non_blocking=True))
