"""Splitting a layer's heads into guided ones and the rest, and joining their outputs in the model's order.

Shapes: B batch, H heads, G key/value heads, h guided heads, T positions, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch


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

    def guided_of(self, q_BHTD: torch.Tensor) -> torch.Tensor:
        """The guided heads' queries [B, h, T, D]."""
        return _take(q_BHTD, self.guided, 1)

    def guided_keys_of(self, k_BGTD: torch.Tensor) -> torch.Tensor:
        """The guided heads' keys or values [B, h, T, D]."""
        return _take(k_BGTD, tuple(head // self.groups for head in self.guided), 1)

    def rest_of(self, q_BHTD: torch.Tensor) -> torch.Tensor:
        """The other heads' queries [B, H-h, T, D]."""
        return _take(q_BHTD, self.rest, 1)

    def rest_keys_of(self, k_BGTD: torch.Tensor) -> torch.Tensor:
        """The other heads' keys or values [B, H-h, T, D]."""
        return _take(k_BGTD, tuple(head // self.groups for head in self.rest), 1)

    def join(self, guided_BThD: torch.Tensor, rest_BTHD: torch.Tensor) -> torch.Tensor:
        """Both outputs as [B, T, H, D], heads in the model's order."""
        first = self.guided[0]
        if _is_run(self.guided):
            parts = [rest_BTHD[:, :, :first], guided_BThD, rest_BTHD[:, :, first:]]
            return torch.cat([part for part in parts if part.shape[2]], 2)
        order = self.guided + self.rest
        joined = torch.cat([guided_BThD, rest_BTHD], 2)
        return _take(joined, tuple(order.index(head) for head in range(len(order))), 2)


def _is_run(heads: tuple[int, ...]) -> bool:
    return heads == tuple(range(heads[0], heads[0] + len(heads)))


def _take(x: torch.Tensor, heads: tuple[int, ...], dim: int) -> torch.Tensor:
    """Heads along `dim`: a view where they are consecutive, else a copy."""
    if _is_run(heads):
        return x.narrow(dim, heads[0], len(heads))
    return x.index_select(dim, torch.tensor(heads, device=x.device))
