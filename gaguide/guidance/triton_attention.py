"""Attention and loss of guided heads on a GPU: the same function as kernel.py, in three launches per layer.

On a GPU the row blocks of kernel.py take dozens of small launches and write each block of H to memory; in the
kernels of triton_kernels.py H stays in registers.

Shapes: B batch, h guided heads, T positions, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from gaguide.guidance import triton_kernels as kernels
from gaguide.guidance.kernel import Dropout
from gaguide.guidance.targets import RowTerms

MAX_WIDTH = 256
"""Widest head that the kernels support."""


def block_size(dtype: torch.dtype, width: int) -> int:
    """Queries and keys of a block, chosen so that a block needs at most 160 KiB of shared memory."""
    row_bytes = dtype.itemsize * _power_of_2(width)
    if dtype.itemsize == 2 and row_bytes <= 256:
        return 64
    return 32 if row_bytes <= 512 else 16


def triton_attention(
    q_BhTD: torch.Tensor, k_BhTD: torch.Tensor, v_BhTD: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Same arguments and results as `kernel.row_block_attention`, for fp32, fp16 and bf16 and causal masks.

    The kernels know one head width. Where values are wider or narrower than queries (multi-head latent
    attention), the narrower ones are padded with zeros, which changes neither scores nor outputs.
    """
    width, value_width = q_BhTD.shape[-1], v_BhTD.shape[-1]
    if width == value_width:
        return _TritonAttention.apply(q_BhTD, k_BhTD, v_BhTD, *others)
    common = max(width, value_width)
    q_BhTD, k_BhTD, v_BhTD = (
        torch.nn.functional.pad(x_BhTD, (0, common - x_BhTD.shape[-1])) for x_BhTD in (q_BhTD, k_BhTD, v_BhTD)
    )
    out_BhTD, loss_h, mass_h = _TritonAttention.apply(q_BhTD, k_BhTD, v_BhTD, *others)
    return out_BhTD[..., :value_width], loss_h, mass_h


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
        dropout: Dropout,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        B, h, T, _ = q_BhTD.shape
        # The kernels would read past the end of smaller tensors.
        if not q_BhTD.shape == k_BhTD.shape == v_BhTD.shape or (
            mask_BQK is not None and (mask_BQK.shape[0] not in (1, B) or mask_BQK.shape[1:] != (T, T))
        ):
            shapes = [None if x is None else tuple(x.shape) for x in (q_BhTD, k_BhTD, v_BhTD, mask_BQK)]
            raise ValueError(f"q, k, v and mask do not belong together: {shapes}")
        q_BhTD, k_BhTD, v_BhTD = (_contiguous_rows(x) for x in (q_BhTD, k_BhTD, v_BhTD))
        out_BhTD = _empty_output(v_BhTD)
        # By row: log-sum-exp, sum H^2, sum H c, then, to be summed: loss, and mass where a target is seen.
        rows_5BhT = torch.empty((5, B, h, T), dtype=torch.float32, device=q_BhTD.device)
        # Without a mask the kernels never read that pointer, so any tensor will do.
        mask = q_BhTD if mask_BQK is None else mask_BQK.contiguous().view(torch.uint8)
        targets = (terms.columns_BhT.contiguous(), terms.offsets_h, terms.scale_BhT.contiguous())
        weight_BhT = terms.weight_BhT.contiguous()
        mask_stride = _mask_stride(mask_BQK)
        factors = (scale, dropout.probability, dropout.seed)
        numbers = (*_strides(q_BhTD, k_BhTD, v_BhTD), mask_stride, *factors)
        shape = _shape(q_BhTD, terms, mask_BQK, dropout.probability)
        kernels.forward[_grid(q_BhTD, shape["R"])](
            q_BhTD, k_BhTD, v_BhTD, mask, *targets, weight_BhT, terms.seen_BhT.contiguous(),
            out_BhTD, *rows_5BhT, *numbers, *q_BhTD.shape[1:], **shape,
        )  # fmt: skip
        loss_h, mass_h = rows_5BhT[3:].sum((1, 3))
        # As [B, T, h, D], which is contiguous, so that hooks on saved tensors cannot change its layout.
        out_BThD = out_BhTD.transpose(1, 2)
        ctx.save_for_backward(q_BhTD, k_BhTD, v_BhTD, out_BThD, rows_5BhT[:3], mask, *targets, weight_BhT)
        ctx.numbers, ctx.shape = (mask_stride, *factors), shape
        mass_h = mass_h / terms.queries_h
        ctx.mark_non_differentiable(mass_h)
        return out_BhTD, loss_h + terms.constant_h, mass_h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_BhTD, k_BhTD, v_BhTD, out_BThD, rows_3BhT, mask, *targets, weight_BhT = ctx.saved_tensors
        logsum_BhT, squares_BhT, masses_BhT = rows_3BhT
        shape: dict[str, Any] = ctx.shape
        do_BhTD = _contiguous_rows(grads[0].to(v_BhTD.dtype))
        gains_BhT, deltas_BhT = torch.empty_like(rows_3BhT[:2])
        dq, dk, dv = (_empty_output(x) for x in (q_BhTD, k_BhTD, v_BhTD))
        given = (q_BhTD, k_BhTD, v_BhTD, do_BhTD, mask, *targets, logsum_BhT, gains_BhT, deltas_BhT)
        rows = (out_BThD.contiguous(), grads[1].float().contiguous(), weight_BhT, squares_BhT, masses_BhT)
        strides = _strides(q_BhTD, k_BhTD, v_BhTD, do_BhTD)
        numbers = (*strides, *ctx.numbers, *q_BhTD.shape[1:])
        kernels.backward_queries[_grid(q_BhTD, shape["R"])](*given, *rows, dq, *numbers, **shape)
        kernels.backward_keys[_grid(q_BhTD, shape["C"])](*given, dk, dv, *numbers, **shape)
        return (dq, dk, dv, None, None, None, None)


def _power_of_2(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 1 << (least - 1).bit_length()


def _contiguous_rows(x_BhTD: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if its last dimension is not contiguous."""
    return x_BhTD if x_BhTD.stride(-1) == 1 else x_BhTD.contiguous()


def _empty_output(x_BhTD: torch.Tensor) -> torch.Tensor:
    """An uninitialised tensor of the same shape and dtype with the memory layout [B, T, h, D]."""
    B, h, T, D = x_BhTD.shape
    return torch.empty((B, T, h, D), dtype=x_BhTD.dtype, device=x_BhTD.device).transpose(1, 2)


def _strides(*tensors: torch.Tensor) -> list[int]:
    return [x_BhTD.stride(dim) for x_BhTD in tensors for dim in range(3)]


def _mask_stride(mask_BQK: torch.Tensor | None) -> int:
    """Elements from one sequence's mask to the next; 0 where all sequences share one."""
    return 0 if mask_BQK is None or mask_BQK.shape[0] == 1 else mask_BQK.shape[1] * mask_BQK.shape[2]


def _grid(x_BhTD: torch.Tensor, block: int) -> tuple[int, int]:
    B, h, T, _ = x_BhTD.shape
    return -(-T // block), B * h  # triton.cdiv would take as long as a launch


def _shape(
    q_BhTD: torch.Tensor, terms: RowTerms, mask_BQK: torch.Tensor | None, dropout: float
) -> dict[str, Any]:
    """Compile-time constants of the kernels."""
    width = q_BhTD.shape[-1]
    block = block_size(q_BhTD.dtype, width)
    exact = q_BhTD.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    return {
        "R": block,
        "C": block,
        "D": max(16, _power_of_2(width)),
        "HAS_MASK": mask_BQK is not None,
        "DROPS": dropout > 0,
        "HAS_OFFSETS": bool(terms.offsets),
        "PRECISION": "ieee" if exact else "tf32",
    }
