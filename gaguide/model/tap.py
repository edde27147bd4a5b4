"""Queries and keys of chosen heads, read on their way into the model's own attention of all heads.

A loss of these queries and keys needs no second path through autograd: its gradients are added in place to
those of the attention's backward. autograd runs the backward of attention and of the loss, in either order,
before that of the tap. Where the tensors are small, and in compiled graphs, plain slices do the same: they
move more memory (zeros for all heads, and a sum of them), but no Python runs for a layer's backward.

Shapes: B batch, H heads, G key/value heads, h chosen heads, T positions, D head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

SMALL = 2**22
"""Numbers in a layer's queries up to which a GPU is taken to wait for its host."""
Runs = tuple[tuple[int, int], ...]
"""Consecutive heads, as (first, number); a head may be in several runs."""


@dataclass(frozen=True)
class TappedHeads:
    """The result of a tap."""

    q_BHTD: torch.Tensor
    """All queries, for the attention alone: their gradient is changed in place."""
    k_BGTD: torch.Tensor
    """All keys, for the attention alone: their gradient is changed in place."""
    queries: tuple[torch.Tensor, ...]
    """Views [B, n, T, D]; joined along their heads they are the chosen heads' queries [B, h, T, D]."""
    keys: tuple[torch.Tensor, ...]
    """Views; joined they are the keys of the chosen heads, one for each head."""


def runs_of(heads: Iterable[int]) -> Runs:
    """Maximal runs of consecutive heads, in the given order."""
    found: list[tuple[int, int]] = []
    for head in heads:
        if found and head == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((head, 1))
    return tuple(found)


def tap_heads(
    chosen: tuple[int, ...], groups: int, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor
) -> TappedHeads:
    """Tap the chosen heads, ascending, of which `groups` share one key head."""
    query_runs, key_runs = runs_of(chosen), runs_of(head // groups for head in chosen)
    if torch.compiler.is_compiling() or q_BHTD.numel() <= SMALL:
        pieces = _views(q_BHTD, query_runs) + _views(k_BGTD, key_runs)
    else:
        q_BHTD, k_BGTD, *pieces = _Tap.apply(query_runs, key_runs, q_BHTD, k_BGTD)
    at = len(query_runs)
    return TappedHeads(q_BHTD, k_BGTD, tuple(pieces[:at]), tuple(pieces[at:]))


class _Tap(torch.autograd.Function):
    """Identity of q and k, and views of their runs."""

    @staticmethod
    def forward(
        ctx: Any, query_runs: Runs, key_runs: Runs, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.runs = query_runs, key_runs
        ctx.shapes = q_BHTD.shape, k_BGTD.shape
        return q_BHTD, k_BGTD, *_views(q_BHTD, query_runs), *_views(k_BGTD, key_runs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        at = 2 + len(ctx.runs[0])
        pieces = grads[2:at], grads[at:]
        return None, None, *map(_add_runs, _own(*grads[:2]), ctx.runs, pieces, ctx.shapes)


def _views(x_BHTD: torch.Tensor, runs: Runs) -> list[torch.Tensor]:
    return [x_BHTD.narrow(1, first, number) for first, number in runs]


def _own(*grads: torch.Tensor | None) -> list[torch.Tensor | None]:
    """The gradients, copied where they cannot be changed in place: one tensor for both, as for q + k, or one
    number for many, as for a sum."""
    storages = [grad.untyped_storage().data_ptr() for grad in grads if grad is not None]
    shared = len(set(storages)) < len(storages)
    return [
        grad.clone(memory_format=torch.contiguous_format)
        if grad is not None and (shared or 0 in grad.stride())
        else grad
        for grad in grads
    ]


def _add_runs(
    grad_BHTD: torch.Tensor | None, runs: Runs, pieces: Sequence[torch.Tensor | None], shape: torch.Size
) -> torch.Tensor | None:
    """The gradient with those of the runs added in place; only those where it is None."""
    for (first, number), piece in zip(runs, pieces):
        if piece is None:
            continue
        if grad_BHTD is None:  # only the loss was differentiated
            B, H, T, D = shape
            grad_BHTD = piece.new_zeros(B, T, H, D).transpose(1, 2)
        grad_BHTD.narrow(1, first, number).add_(piece)
    return grad_BHTD
