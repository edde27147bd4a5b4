"""Attention of guided heads and their guidance loss, in row blocks: O(T) memory, one softmax for both.

Guided heads leave the model's fused attention and run here. Each block of query rows computes its rows of H
once and uses them for the output H V *and* for the row sums of the loss (see targets.py). Backward recomputes
the rows and adds the loss to the gradient that attention needs anyway:

    dH = dO V^T + 2 g r_p (H - t_p c)        dS = H * (dH - delta_p)
    delta_p = dO_p . O_p + 2 g r_p (sum H^2 - t_p mass_p)

so guidance adds one elementwise pass and no matrix product to a guided head's backward. H is before dropout
(the study's Eq. 1 has none). Arithmetic is fp32 for fp32, fp16 and bf16 models and fp64 for fp64 models.

Shapes: B batch, h guided heads, T positions, R rows of a block, C columns it can see, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from gaguide.guidance.row_blocks import rows_of_block
from gaguide.guidance.targets import RowTerms


@dataclass(frozen=True)
class Dropout:
    """Dropout of attention probabilities."""

    probability: float
    """Probability with which an entry is dropped."""
    seed: int
    """Seed of the entries to drop, so that backward drops the same ones."""


NO_DROPOUT = Dropout(0.0, 0)


def guidance_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that guidance computes in for a model of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_block_attention(
    q_BhTD: torch.Tensor,
    k_BhTD: torch.Tensor,
    v_BhTD: torch.Tensor,
    terms: RowTerms,
    mask_BQK: torch.Tensor | None,
    scale: float,
    dropout: Dropout = NO_DROPOUT,
    row_block: int | None = None,
    causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`guided_attention` in torch operations, for any device and dtype.

    causal: whether the mask hides all later keys; where it does not, blocks have all columns.
    """
    rows = row_block or rows_of_block(q_BhTD.shape[2])
    with torch.autocast(q_BhTD.device.type, enabled=False):
        return _GuidedAttention.apply(q_BhTD, k_BhTD, v_BhTD, terms, mask_BQK, scale, dropout, rows, causal)


@torch.no_grad()
def measure_attention(
    q_BhTD: torch.Tensor,
    k_BhTD: torch.Tensor,
    terms: RowTerms,
    mask_BQK: torch.Tensor | None,
    scale: float,
    row_block: int | None = None,
    causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and attention mass per head [h], without the attention output and without gradients."""
    with torch.autocast(q_BhTD.device.type, enabled=False):
        size = row_block or rows_of_block(q_BhTD.shape[2])
        rows = _Rows(q_BhTD, k_BhTD, mask_BQK, scale, size, causal)
        sums = _row_sums(rows, terms)
        return terms.loss(sums.distances_BhT), terms.mean_mass(sums.mass_BhT)


class _Rows:
    """Computes blocks of rows of H from q and k, in the guidance dtype."""

    def __init__(
        self,
        q_BhTD: torch.Tensor,
        k_BhTD: torch.Tensor,
        mask_BQK: torch.Tensor | None,
        scale: float,
        row_block: int,
        causal: bool,
    ) -> None:
        if mask_BQK is None and not causal:
            raise ValueError("attention that is not causal needs a mask")
        dtype = guidance_dtype(q_BhTD.dtype)
        # Scaling q costs T x D, scaling the scores T x T.
        self.q_BhTD = q_BhTD.to(dtype) * scale
        self.k_BhTD = k_BhTD.to(dtype)
        self.mask_BQK = mask_BQK
        T = q_BhTD.shape[2]
        # Only the square on the diagonal contains keys that come after their query.
        size = min(row_block, T)
        self.later_RR = torch.ones(size, size, dtype=torch.bool, device=q_BhTD.device).triu_(1)
        blocks = [(start, min(start + row_block, T)) for start in range(0, T, row_block)]
        self.spans = [(start, stop, stop if causal else T) for start, stop in blocks]
        """Blocks: queries [start, stop), and the number of keys that some of them may see."""

    def softmax(self, start: int, stop: int, columns: int) -> torch.Tensor:
        """H[start:stop, :columns] as [B, h, R, C]; later columns are zero."""
        s_BhRC = self.q_BhTD[:, :, start:stop] @ self.k_BhTD[:, :, :columns].mT
        # The lowest finite value instead of -inf: a padding row that sees no key must not become NaN.
        self.hide(s_BhRC, start, stop, torch.finfo(s_BhRC.dtype).min)
        h_BhRC = torch.softmax(s_BhRC, -1)
        if self.mask_BQK is not None:
            self.hide(h_BhRC, start, stop, 0)  # a row that sees no key has no attention, nor a gradient
        return h_BhRC

    def hide(self, x_BhRC: torch.Tensor, start: int, stop: int, value: float) -> None:
        """Write `value` where the query may not see the key."""
        if self.mask_BQK is not None:
            x_BhRC.masked_fill_(~self.mask_BQK[:, None, start:stop, : x_BhRC.shape[-1]], value)
        else:
            x_BhRC[..., start:stop].masked_fill_(self.later_RR[: stop - start, : stop - start], value)


class _GuidedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BhTD: torch.Tensor,
        k_BhTD: torch.Tensor,
        v_BhTD: torch.Tensor,
        terms: RowTerms,
        mask_BQK: torch.Tensor | None,
        scale: float,
        dropout: Dropout,
        row_block: int,
        causal: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = _Rows(q_BhTD, k_BhTD, mask_BQK, scale, row_block, causal)
        v = v_BhTD.to(rows.k_BhTD.dtype)
        out_BhTD = torch.empty_like(v, memory_format=torch.contiguous_format)

        def attend(start: int, stop: int, h_BhRC: torch.Tensor) -> None:
            dropped = h_BhRC if dropout.probability == 0 else h_BhRC * _keep(h_BhRC, dropout, start)
            torch.matmul(dropped, v[:, :, : h_BhRC.shape[-1]], out=out_BhTD[:, :, start:stop])

        sums = _row_sums(rows, terms, attend)
        h_dot_d_BhT = sums.squares_BhT - terms.scale_BhT * sums.mass_BhT
        ctx.save_for_backward(q_BhTD, k_BhTD, v_BhTD, out_BhTD, h_dot_d_BhT, mask_BQK)
        ctx.terms, ctx.scale, ctx.dropout, ctx.row_block = terms, scale, dropout, row_block
        ctx.causal = causal
        mass_h = terms.mean_mass(sums.mass_BhT)
        ctx.mark_non_differentiable(mass_h)
        return out_BhTD.to(v_BhTD.dtype), terms.loss(sums.distances_BhT), mass_h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast(grads[0].device.type, enabled=False):
            return _GuidedAttention._backward(ctx, *grads)

    @staticmethod
    def _backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_out_BhTD, grad_loss_h = grads[0], grads[1]
        q_BhTD, k_BhTD, v_BhTD, out_BhTD, h_dot_d_BhT, mask_BQK = ctx.saved_tensors
        terms: RowTerms = ctx.terms
        rows = _Rows(q_BhTD, k_BhTD, mask_BQK, ctx.scale, ctx.row_block, ctx.causal)
        v = v_BhTD.to(out_BhTD.dtype)
        do_BhTD = grad_out_BhTD.to(out_BhTD.dtype)
        dq_BhTD = torch.empty_like(rows.q_BhTD)
        dk_BhTD = torch.zeros_like(rows.k_BhTD)
        dv_BhTD = torch.zeros_like(v)
        # d loss / d row term, and the term that softmax's backward subtracts from every entry of a row.
        g_BhT = 2 * grad_loss_h[:, None] * terms.weight_BhT
        delta_BhT = (do_BhTD * out_BhTD).sum(-1) + g_BhT * h_dot_d_BhT
        for start, stop, columns in rows.spans:
            here = (slice(None), slice(None), slice(start, stop))
            h_BhRC = rows.softmax(start, stop, columns)
            dh_BhRC = do_BhTD[here] @ v[:, :, :columns].mT
            dropped = h_BhRC
            if ctx.dropout.probability > 0:
                keep = _keep(h_BhRC, ctx.dropout, start)
                dropped, dh_BhRC = h_BhRC * keep, dh_BhRC * keep
            dv_BhTD[:, :, :columns] += dropped.mT @ do_BhTD[here]
            dh_BhRC.addcmul_(h_BhRC, g_BhT[here][..., None])
            _subtract_target(dh_BhRC, g_BhT[here] * terms.scale_BhT[here], terms, start)
            ds_BhRC = dh_BhRC.sub_(delta_BhT[here][..., None]).mul_(h_BhRC)
            torch.matmul(ds_BhRC, rows.k_BhTD[:, :, :columns], out=dq_BhTD[here])
            dk_BhTD[:, :, :columns] += ds_BhRC.mT @ rows.q_BhTD[here]
        dq_BhTD *= ctx.scale
        grads_qkv = (
            dq_BhTD.to(q_BhTD.dtype),
            dk_BhTD.to(k_BhTD.dtype),
            dv_BhTD.to(v_BhTD.dtype),
        )
        return (*grads_qkv, None, None, None, None, None, None)


@dataclass(frozen=True)
class _RowSums:
    squares_BhT: torch.Tensor
    """Sum of H^2."""
    distances_BhT: torch.Tensor
    """Sum of (H - t c)^2 over visible keys."""
    mass_BhT: torch.Tensor
    """Sum of H c."""


def _row_sums(
    rows: _Rows, terms: RowTerms, use: Callable[[int, int, torch.Tensor], None] | None = None
) -> _RowSums:
    """Row sums, block by block; `use(start, stop, h_BhRC)` is called with each block while it exists.

    The distance is a sum over differences: sum H^2 - 2 t mass + t^2 n would cancel to noise, even below zero,
    once a head attends to its targets.
    """
    squares, distances, masses = [], [], []
    for start, stop, columns in rows.spans:
        h_BhRC = rows.softmax(start, stop, columns)
        if use is not None:
            use(start, stop, h_BhRC)
        squares.append(torch.linalg.vector_norm(h_BhRC, dim=-1).square_())
        mass_BhR = (h_BhRC @ terms.columns_BhT[:, :, :columns, None]).squeeze(-1)
        for slot, distance in terms.offsets:
            diagonal_BN, first = _diagonal(h_BhRC, slot, distance, start)
            mass_BhR[:, slot, first : first + diagonal_BN.shape[1]] = diagonal_BN
        masses.append(mass_BhR)
        _subtract_target(h_BhRC, terms.scale_BhT[:, :, start:stop], terms, start)
        rows.hide(h_BhRC, start, stop, 0)
        distances.append(torch.linalg.vector_norm(h_BhRC, dim=-1).square_())
    return _RowSums(torch.cat(squares, -1), torch.cat(distances, -1), torch.cat(masses, -1))


def _diagonal(x_BhRC: torch.Tensor, slot: int, distance: int, start: int) -> tuple[torch.Tensor, int]:
    """View of the entries (p, p - distance) in a block whose first row is `start`, and its first row."""
    return x_BhRC[:, slot].diagonal(start - distance, 1, 2), max(distance - start, 0)


def _subtract_target(x_BhRC: torch.Tensor, factor_BhR: torch.Tensor, terms: RowTerms, start: int) -> None:
    """Subtract factor_p P_p from x in place, for column targets and for offsets."""
    C = x_BhRC.shape[-1]
    if len(terms.offsets) < x_BhRC.shape[1]:
        x_BhRC.addcmul_(factor_BhR[..., None], terms.columns_BhT[:, :, None, :C], value=-1)
    for slot, distance in terms.offsets:
        diagonal_BN, first = _diagonal(x_BhRC, slot, distance, start)
        diagonal_BN -= factor_BhR[:, slot, first : first + diagonal_BN.shape[1]]


def _keep(h_BhRC: torch.Tensor, dropout: Dropout, start: int) -> torch.Tensor:
    """Dropout's factor of each entry of the block whose first row is `start`."""
    generator = torch.Generator(h_BhRC.device).manual_seed(dropout.seed + start)
    kept = 1 - dropout.probability
    return torch.empty_like(h_BhRC).bernoulli_(kept, generator=generator).div_(kept)
