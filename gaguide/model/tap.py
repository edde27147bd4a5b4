"""Queries and keys of chosen heads, read on their way into the model's own attention of all heads.

A loss of these queries and keys needs no second path through autograd: its gradients are added in place to
those of the attention's backward. autograd runs the backward of attention and of the loss, in either order,
before that of the tap. Small tensors of several layers are gathered instead, without a change to what the
attention gets: autograd then adds a gradient of all heads, zeros for those not chosen, which moves and keeps
more memory, but no Python runs for a layer, forward or backward. In compiled graphs, and where a layer with
small tensors is computed alone, plain slices do the same.

Shapes: L layers, B batch, H heads, G key/value heads, h chosen heads, T positions, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from gaguide.model.head_runs import SMALL, HeadRuns, Runs


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


def tap_heads(runs: HeadRuns, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor) -> TappedHeads:
    """Tap the chosen heads of a layer."""
    if torch.compiler.is_compiling() or is_small(q_BHTD):
        pieces = _views(q_BHTD, runs.queries) + _views(k_BGTD, runs.keys)
    else:
        q_BHTD, k_BGTD, *pieces = _Tap.apply(runs.queries, runs.keys, q_BHTD, k_BGTD)
    at = len(runs.queries)
    return TappedHeads(q_BHTD, k_BGTD, tuple(pieces[:at]), tuple(pieces[at:]))


def is_small(q_BHTD: torch.Tensor) -> bool:
    """Whether a GPU is taken to wait for its host in layers with such queries."""
    return q_BHTD.numel() <= SMALL


def gather_heads(runs: Sequence[Runs], layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """A copy of each layer's runs of its queries [B, H, T, D], or keys, joined along the heads: [B, h, T, D].

    The layers have one shape.
    """
    gathered: torch.Tensor = _Gather.apply(tuple(runs), *layers)
    return gathered


class _Gather(torch.autograd.Function):
    """Copies of runs of heads; backward makes the gradients of all heads, in one tensor for all layers."""

    @staticmethod
    def forward(ctx: Any, runs: tuple[Runs, ...], *layers: torch.Tensor) -> torch.Tensor:
        ctx.runs, ctx.shape = runs, layers[0].shape
        return torch.cat([piece for x, own in zip(layers, runs) for piece in _views(x, own)], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BhTD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (B, H, T, D), L = ctx.shape, len(ctx.runs)
        all_LBHTD = grad_BhTD.new_zeros(L, B, T, H, D).transpose(2, 3)
        if len(set(ctx.runs)) == 1:
            _add_joined(all_LBHTD, grad_BhTD.unflatten(1, (L, -1)).transpose(0, 1), ctx.runs[0])
        else:
            sizes = [sum(number for _, number in runs) for runs in ctx.runs]
            for one_1BHTD, grad, runs in zip(all_LBHTD.split(1), grad_BhTD.split(sizes, 1), ctx.runs):
                _add_joined(one_1BHTD, grad[None], runs)
        return None, *all_LBHTD.unbind()


def _add_joined(all_LBHTD: torch.Tensor, joined_LBhTD: torch.Tensor, runs: Runs) -> None:
    at = 0
    for first, number in runs:
        all_LBHTD.narrow(2, first, number).add_(joined_LBhTD.narrow(2, at, number))
        at += number


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
