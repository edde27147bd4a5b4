"""The guided heads' attention and loss as Triton kernels: what kernel.py computes, in three launches a layer.

On a GPU the row blocks of kernel.py are dozens of small launches and write each block of H to memory; here H
lives in registers. The mathematics is that of kernel.py's header:

    forward   one sweep over the keys gives O and the row's log-sum-exp, a second one the loss's row sums
              (the distance must be summed from differences, which needs the finished softmax)
    backward  one kernel owns blocks of queries (dq), one owns blocks of keys (dk, dv): no atomics, so the
              same bits every time

Softmax, loss and row sums are fp32. As in flash attention, H and dS are rounded to the model's dtype where
they meet V, K and Q in a matrix product; for fp32 models nothing is rounded unless torch may use tf32.

Shapes: B batch, h guided heads, T positions, D head width; in kernels R rows (queries), C columns (keys), D
the head width rounded up to a power of two.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from gaguide.guidance.targets import RowTerms

MAX_WIDTH = 256
"""Widest head that the kernels take."""


def block_size(dtype: torch.dtype, width: int) -> int:
    """Queries and keys of a block, such that 160 KiB of shared memory hold what they need."""
    row_bytes = dtype.itemsize * triton.next_power_of_2(width)
    if dtype.itemsize == 2 and row_bytes <= 256:
        return 64
    return 32 if row_bytes <= 512 else 16


@triton.jit
def _load_rows(base, rows_R, stride, T, width, D: tl.constexpr):
    """Rows of a [T, width] matrix whose last stride is 1, as [R, D]; what lies outside is 0."""
    columns_D = tl.arange(0, D)
    inside_RD = (rows_R[:, None] < T) & (columns_D[None, :] < width)
    return tl.load(base + rows_R[:, None] * stride + columns_D[None, :], mask=inside_RD, other=0.0)


@triton.jit
def _store_rows(base, x_RD, rows_R, stride, T, width, D: tl.constexpr):
    columns_D = tl.arange(0, D)
    inside_RD = (rows_R[:, None] < T) & (columns_D[None, :] < width)
    at_RD = base + rows_R[:, None] * stride + columns_D[None, :]
    tl.store(at_RD, x_RD.to(base.dtype.element_ty), mask=inside_RD)


@triton.jit
def _visible(mask, rows_R, columns_C, T, HAS_MASK: tl.constexpr):
    """Which keys the queries may see: causal, or a mask that is a subset of causal."""
    visible_RC = (rows_R[:, None] >= columns_C[None, :]) & (rows_R[:, None] < T)
    if HAS_MASK:
        at_RC = mask + rows_R[:, None].to(tl.int64) * T + columns_C[None, :]
        visible_RC = visible_RC & (tl.load(at_RC, mask=visible_RC, other=0) != 0)
    return visible_RC


@triton.jit
def _targets(columns, offset, rows_R, columns_C, T):
    """c_pq: the head's marked keys, or the key `offset` positions back where the head has an offset."""
    marked_C = tl.load(columns + columns_C, mask=columns_C < T, other=0.0)
    behind_RC = rows_R[:, None] - columns_C[None, :] == offset
    return tl.where(offset >= 0, behind_RC.to(tl.float32), marked_C[None, :])


@triton.jit
def _keep(seed, rows_R, columns_C, T, dropout):
    """Dropout's factor of each entry, the same in forward and backward."""
    random_RC = tl.rand(seed, rows_R[:, None] * T + columns_C[None, :])
    return tl.where(random_RC >= dropout, 1.0 / (1.0 - dropout), 0.0)


@triton.jit(do_not_specialize=["seed"])
def _forward(
    q, k, v, mask, columns, offsets, factors, out, logsum, squares, distances, masses,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, mask_b, scale, dropout, seed, heads, T, width,
    R: tl.constexpr, C: tl.constexpr, D: tl.constexpr, HAS_MASK: tl.constexpr, DROPS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(1)
    b, head = (pair // heads).to(tl.int64), pair % heads
    start = tl.program_id(0) * R
    rows_R = start + tl.arange(0, R)
    q += b * q_b + head * q_h
    k += b * k_b + head * k_h
    v += b * v_b + head * v_h
    mask += b * mask_b
    row = pair.to(tl.int64) * T
    offset = tl.load(offsets + head)
    q_RD = _load_rows(q, rows_R, q_t, T, width, D)

    highest_R = tl.full([R], -float("inf"), tl.float32)
    total_R = tl.zeros([R], tl.float32)
    out_RD = tl.zeros([R, D], tl.float32)
    for at in range(0, tl.minimum(start + R, T), C):
        columns_C = at + tl.arange(0, C)
        k_CD = _load_rows(k, columns_C, k_t, T, width, D)
        s_RC = tl.dot(q_RD, tl.trans(k_CD), input_precision=PRECISION) * scale
        s_RC = tl.where(_visible(mask, rows_R, columns_C, T, HAS_MASK), s_RC, -float("inf"))
        higher_R = tl.maximum(highest_R, tl.max(s_RC, 1))
        # A row that has seen nothing yet: subtract 0, so that exp(-inf) is 0 and nothing is NaN.
        shift_R = tl.where(higher_R == -float("inf"), 0.0, higher_R)
        fade_R = tl.exp(highest_R - shift_R)
        e_RC = tl.exp(s_RC - shift_R[:, None])
        total_R = total_R * fade_R + tl.sum(e_RC, 1)
        if DROPS:
            e_RC *= _keep(seed + pair, rows_R, columns_C, T, dropout)
        v_CD = _load_rows(v, columns_C, v_t, T, width, D)
        out_RD = out_RD * fade_R[:, None] + tl.dot(e_RC.to(v_CD.dtype), v_CD, input_precision=PRECISION)
        highest_R = higher_R
    seen_R = total_R > 0
    out_RD /= tl.where(seen_R, total_R, 1.0)[:, None]
    _store_rows(out + row * width, out_RD, rows_R, width, T, width, D)
    # +inf makes every entry of a row without keys exp(-inf) = 0, here and in backward.
    logsum_R = tl.where(seen_R, highest_R + tl.log(tl.where(seen_R, total_R, 1.0)), float("inf"))
    tl.store(logsum + row + rows_R, logsum_R, mask=rows_R < T)

    factor_R = tl.load(factors + row + rows_R, mask=rows_R < T, other=0.0)
    square_R = tl.zeros([R], tl.float32)
    distance_R = tl.zeros([R], tl.float32)
    mass_R = tl.zeros([R], tl.float32)
    for at in range(0, tl.minimum(start + R, T), C):
        columns_C = at + tl.arange(0, C)
        k_CD = _load_rows(k, columns_C, k_t, T, width, D)
        s_RC = tl.dot(q_RD, tl.trans(k_CD), input_precision=PRECISION) * scale
        visible_RC = _visible(mask, rows_R, columns_C, T, HAS_MASK)
        h_RC = tl.where(visible_RC, tl.exp(s_RC - logsum_R[:, None]), 0.0)
        c_RC = _targets(columns + row, offset, rows_R, columns_C, T)
        difference_RC = tl.where(visible_RC, h_RC - factor_R[:, None] * c_RC, 0.0)
        square_R += tl.sum(h_RC * h_RC, 1)
        distance_R += tl.sum(difference_RC * difference_RC, 1)
        mass_R += tl.sum(h_RC * c_RC, 1)
    tl.store(squares + row + rows_R, square_R, mask=rows_R < T)
    tl.store(distances + row + rows_R, distance_R, mask=rows_R < T)
    tl.store(masses + row + rows_R, mass_R, mask=rows_R < T)


@triton.jit
def _scores_gradient(
    q_RD, k_CD, v_CD, do_RD, rows_R, columns_C, mask, columns, offset, logsum_R, gain_R, factor_R, delta_R,
    scale, dropout, seed, T, HAS_MASK: tl.constexpr, DROPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(H after dropout, dS) of one block, fp32; 0 where the query may not see the key."""
    s_RC = tl.dot(q_RD, tl.trans(k_CD), input_precision=PRECISION) * scale
    visible_RC = _visible(mask, rows_R, columns_C, T, HAS_MASK)
    h_RC = tl.where(visible_RC, tl.exp(s_RC - logsum_R[:, None]), 0.0)
    dh_RC = tl.dot(do_RD, tl.trans(v_CD), input_precision=PRECISION)
    dropped_RC = h_RC
    if DROPS:
        keep_RC = _keep(seed, rows_R, columns_C, T, dropout)
        dropped_RC = h_RC * keep_RC
        dh_RC *= keep_RC
    c_RC = _targets(columns, offset, rows_R, columns_C, T)
    dh_RC += gain_R[:, None] * (h_RC - factor_R[:, None] * c_RC)
    return dropped_RC, h_RC * (dh_RC - delta_R[:, None])


@triton.jit(do_not_specialize=["seed"])
def _backward_queries(
    q, k, v, do, mask, columns, offsets, factors, logsum, gains, deltas, dq,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, mask_b, scale, dropout, seed, heads, T, width,
    R: tl.constexpr, C: tl.constexpr, D: tl.constexpr, HAS_MASK: tl.constexpr, DROPS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(1)
    b, head = (pair // heads).to(tl.int64), pair % heads
    start = tl.program_id(0) * R
    rows_R = start + tl.arange(0, R)
    k += b * k_b + head * k_h
    v += b * v_b + head * v_h
    row = pair.to(tl.int64) * T
    offset = tl.load(offsets + head)
    q_RD = _load_rows(q + b * q_b + head * q_h, rows_R, q_t, T, width, D)
    do_RD = _load_rows(do + row * width, rows_R, width, T, width, D)
    logsum_R = tl.load(logsum + row + rows_R, mask=rows_R < T, other=float("inf"))
    gain_R = tl.load(gains + row + rows_R, mask=rows_R < T, other=0.0)
    factor_R = tl.load(factors + row + rows_R, mask=rows_R < T, other=0.0)
    delta_R = tl.load(deltas + row + rows_R, mask=rows_R < T, other=0.0)
    dq_RD = tl.zeros([R, D], tl.float32)
    for at in range(0, tl.minimum(start + R, T), C):
        columns_C = at + tl.arange(0, C)
        k_CD = _load_rows(k, columns_C, k_t, T, width, D)
        v_CD = _load_rows(v, columns_C, v_t, T, width, D)
        _, ds_RC = _scores_gradient(
            q_RD, k_CD, v_CD, do_RD, rows_R, columns_C, mask + b * mask_b, columns + row, offset, logsum_R,
            gain_R, factor_R, delta_R, scale, dropout, seed + pair, T, HAS_MASK, DROPS, PRECISION,
        )  # fmt: skip
        dq_RD += tl.dot(ds_RC.to(k_CD.dtype), k_CD, input_precision=PRECISION)
    _store_rows(dq + row * width, dq_RD * scale, rows_R, width, T, width, D)


@triton.jit(do_not_specialize=["seed"])
def _backward_keys(
    q, k, v, do, mask, columns, offsets, factors, logsum, gains, deltas, dk, dv,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, mask_b, scale, dropout, seed, heads, T, width,
    R: tl.constexpr, C: tl.constexpr, D: tl.constexpr, HAS_MASK: tl.constexpr, DROPS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(1)
    b, head = (pair // heads).to(tl.int64), pair % heads
    start = tl.program_id(0) * C
    columns_C = start + tl.arange(0, C)
    q += b * q_b + head * q_h
    row = pair.to(tl.int64) * T
    offset = tl.load(offsets + head)
    k_CD = _load_rows(k + b * k_b + head * k_h, columns_C, k_t, T, width, D)
    v_CD = _load_rows(v + b * v_b + head * v_h, columns_C, v_t, T, width, D)
    dk_CD = tl.zeros([C, D], tl.float32)
    dv_CD = tl.zeros([C, D], tl.float32)
    for at in range(start // R * R, T, R):  # earlier queries see none of these keys
        rows_R = at + tl.arange(0, R)
        q_RD = _load_rows(q, rows_R, q_t, T, width, D)
        do_RD = _load_rows(do + row * width, rows_R, width, T, width, D)
        logsum_R = tl.load(logsum + row + rows_R, mask=rows_R < T, other=float("inf"))
        gain_R = tl.load(gains + row + rows_R, mask=rows_R < T, other=0.0)
        factor_R = tl.load(factors + row + rows_R, mask=rows_R < T, other=0.0)
        delta_R = tl.load(deltas + row + rows_R, mask=rows_R < T, other=0.0)
        dropped_RC, ds_RC = _scores_gradient(
            q_RD, k_CD, v_CD, do_RD, rows_R, columns_C, mask + b * mask_b, columns + row, offset, logsum_R,
            gain_R, factor_R, delta_R, scale, dropout, seed + pair, T, HAS_MASK, DROPS, PRECISION,
        )  # fmt: skip
        dv_CD += tl.dot(tl.trans(dropped_RC).to(do_RD.dtype), do_RD, input_precision=PRECISION)
        dk_CD += tl.dot(tl.trans(ds_RC).to(q_RD.dtype), q_RD, input_precision=PRECISION)
    _store_rows(dk + row * width, dk_CD * scale, columns_C, width, T, width, D)
    _store_rows(dv + row * width, dv_CD, columns_C, width, T, width, D)


def triton_attention(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `kernel.row_block_attention` computes from the same arguments, for fp32, fp16 and bf16."""
    with torch.autocast(arguments[0].device.type, enabled=False):
        return _TritonAttention.apply(*arguments)


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BhTD: torch.Tensor,
        k_BhTD: torch.Tensor,
        v_BhTD: torch.Tensor,
        terms: RowTerms,
        mask_BQK: torch.Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        B, h, T, D = q_BhTD.shape
        q_BhTD, k_BhTD, v_BhTD = (
            x if x.stride(-1) == 1 else x.contiguous() for x in (q_BhTD, k_BhTD, v_BhTD)
        )
        out_BhTD = torch.empty((B, h, T, D), dtype=v_BhTD.dtype, device=v_BhTD.device)
        rows_4BhT = torch.empty((4, B, h, T), dtype=torch.float32, device=q_BhTD.device)
        logsum_BhT, squares_BhT, distances_BhT, mass_BhT = rows_4BhT
        offsets_h = _offsets(terms, h, q_BhTD.device)
        launch = _Launch(q_BhTD, k_BhTD, v_BhTD, mask_BQK, scale, dropout, seed)
        launch(
            _forward,
            (q_BhTD, k_BhTD, v_BhTD, launch.mask, terms.columns_BhT, offsets_h, terms.scale_BhT.contiguous()),
            (out_BhTD, logsum_BhT, squares_BhT, distances_BhT, mass_BhT),
        )
        h_dot_d_BhT = squares_BhT - terms.scale_BhT * mass_BhT
        ctx.save_for_backward(q_BhTD, k_BhTD, v_BhTD, out_BhTD, logsum_BhT, h_dot_d_BhT, offsets_h, mask_BQK)
        ctx.terms, ctx.numbers = terms, (scale, dropout, seed)
        mass_h = terms.mean_mass(mass_BhT)
        ctx.mark_non_differentiable(mass_h)
        return out_BhTD, terms.loss(distances_BhT), mass_h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_BhTD, k_BhTD, v_BhTD, out_BhTD, logsum_BhT, h_dot_d_BhT, offsets_h, mask_BQK = ctx.saved_tensors
        terms: RowTerms = ctx.terms
        do_BhTD = grads[0].to(v_BhTD.dtype).contiguous()
        gains_BhT = (2 * grads[1].float()[:, None] * terms.weight_BhT).contiguous()
        deltas_BhT = (do_BhTD.float() * out_BhTD.float()).sum(-1) + gains_BhT * h_dot_d_BhT
        dq, dk, dv = (torch.empty_like(out_BhTD, dtype=x.dtype) for x in (q_BhTD, k_BhTD, v_BhTD))
        launch = _Launch(q_BhTD, k_BhTD, v_BhTD, mask_BQK, *ctx.numbers)
        given = (
            q_BhTD, k_BhTD, v_BhTD, do_BhTD, launch.mask, terms.columns_BhT, offsets_h,
            terms.scale_BhT.contiguous(), logsum_BhT, gains_BhT, deltas_BhT.contiguous(),
        )  # fmt: skip
        launch(_backward_queries, given, (dq,))
        launch(_backward_keys, given, (dk, dv))
        return (dq, dk, dv, None, None, None, None, None)


def _offsets(terms: RowTerms, heads: int, device: torch.device) -> torch.Tensor:
    """Each head's offset [h] int32; -1 for a head with marked columns."""
    offsets = [-1] * heads
    for slot, distance in terms.offsets:
        offsets[slot] = distance
    return torch.tensor(offsets, dtype=torch.int32, device=device)


class _Launch:
    """Starts one of the kernels above: the arguments that all three share."""

    def __init__(
        self,
        q_BhTD: torch.Tensor,
        k_BhTD: torch.Tensor,
        v_BhTD: torch.Tensor,
        mask_BQK: torch.Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
    ) -> None:
        B, h, T, D = q_BhTD.shape
        block = block_size(q_BhTD.dtype, D)
        self.grid = (triton.cdiv(T, block), B * h)
        self.mask = q_BhTD if mask_BQK is None else mask_BQK.contiguous().view(torch.uint8)
        strides = [x.stride(dim) for x in (q_BhTD, k_BhTD, v_BhTD) for dim in range(3)]
        mask_stride = T * T if mask_BQK is not None and mask_BQK.shape[0] > 1 else 0
        self.numbers = (*strides, mask_stride, scale, dropout, seed, h, T, D)
        exact = q_BhTD.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
        self.shape = {
            "R": block,
            "C": block,
            "D": max(16, triton.next_power_of_2(D)),
            "HAS_MASK": mask_BQK is not None,
            "DROPS": dropout > 0,
            "PRECISION": "ieee" if exact else "tf32",
        }

    def __call__(self, kernel: Any, given: tuple[Any, ...], made: tuple[Any, ...]) -> None:
        kernel[self.grid](*given, *made, *self.numbers, **self.shape)
