"""Attention and loss of guided heads on a GPU: the same functions as kernel.py, in three launches.

On a GPU the row blocks of kernel.py take dozens of small launches and write each block of H to memory; in the
kernels of triton_kernels.py H stays in registers. For fp32, fp16 and bf16 and causal masks.

Shapes: B batch, h guided heads, T positions, N coefficients, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gaguide.guidance import triton_kernels as kernels
from gaguide.guidance.kernel import Numbers, Results
from gaguide.guidance.losses import ROW_LOSSES
from gaguide.guidance.targets import RowTerms

MAX_WIDTH = 256
"""Widest head that the kernels support."""


def block_size(dtype: torch.dtype, width: int) -> int:
    """Queries and keys of a block, chosen so that a block needs at most 160 KiB of shared memory."""
    row_bytes = dtype.itemsize * _power_of_2(width)
    if dtype.itemsize == 2 and row_bytes <= 256:
        return 64
    return 32 if row_bytes <= 512 else 16


def forward(
    qkv_BhTD: Sequence[torch.Tensor],
    terms: RowTerms,
    mask_BQK: torch.Tensor | None,
    seed: torch.Tensor | None,
    numbers: Numbers,
) -> Results:
    """`kernel.forward`; the output has the dtype of the values.

    The kernels know one head width. Where values are wider or narrower than queries (multi-head latent
    attention), the narrower ones are padded with zeros, which changes neither scores nor outputs.
    """
    has_values = len(qkv_BhTD) == 3
    q, k, *values = _prepared(qkv_BhTD)
    v = values[0] if has_values else q  # a pointer that is never read
    B, h, T, _ = q.shape
    # The kernels would read past the end of smaller tensors.
    if not q.shape == k.shape == v.shape or (
        mask_BQK is not None and (mask_BQK.shape[0] not in (1, B) or mask_BQK.shape[1:] != (T, T))
    ):
        shapes = [None if x is None else tuple(x.shape) for x in (*qkv_BhTD, mask_BQK)]
        raise ValueError(f"q, k, v and mask do not belong together: {shapes}")
    out_BhTD = _empty_output(v) if has_values else None
    names = ROW_LOSSES[numbers.loss].coefficients
    # By row: log-sum-exp and coefficients, then, to be summed: loss, and mass where a target is seen.
    rows_NBhT = torch.empty((len(names) + 3, B, h, T), dtype=torch.float32, device=q.device)
    logsum_BhT, *coefficients, losses_BhT, masses_BhT = rows_NBhT.unbind()
    constants = _constants(q, mask_BQK, numbers, has_values)
    kernels.forward[_grid(q, constants["R"])](
        q, k, v, _mask_bytes(q, mask_BQK), terms.columns_BhT.contiguous(), terms.offsets_h,
        terms.level_BhT.contiguous(), terms.weight_BhT.contiguous(), terms.seen_BhT.contiguous(),
        q if out_BhTD is None else out_BhTD, logsum_BhT, *_by_use(coefficients, names), losses_BhT,
        masses_BhT, *_strides(q, k, v), _mask_stride(mask_BQK), *_factors(numbers, seed), *q.shape[1:],
        **constants,
    )  # fmt: skip
    loss_h, mass_h = rows_NBhT[-2:].sum((1, 3))
    return Results(
        None if out_BhTD is None else _narrowed(out_BhTD, qkv_BhTD[2].shape[-1]),
        loss_h + terms.constant_h,
        mass_h / terms.queries_h,
        rows_NBhT[:-2],
    )


def backward(
    grad_loss_h: torch.Tensor,
    qk_BhTD: Sequence[torch.Tensor],
    attention: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    coefficients_NBhT: torch.Tensor,
    mask_BQK: torch.Tensor | None,
    seed: torch.Tensor | None,
    numbers: Numbers,
) -> tuple[torch.Tensor, ...]:
    """`kernel.backward`."""
    q, k, *others = _prepared((*qk_BhTD, *attention[:2], *(x.to(attention[0].dtype) for x in attention[2:])))
    v, out, do = others or (q, q, q)  # pointers that are never read
    if others:
        out = out.transpose(1, 2).contiguous()  # hooks on saved tensors may have changed its layout
    logsum_BhT, *coefficients = coefficients_NBhT.unbind()
    squares, pulls, shifts = _by_use(coefficients, ROW_LOSSES[numbers.loss].coefficients)
    deltas_BhT = torch.empty_like(logsum_BhT)
    grads = [_empty_output(x) for x in (q, k, v)[: 2 + bool(others)]]
    constants = _constants(q, mask_BQK, numbers, bool(others))
    given = (
        q, k, v, do, _mask_bytes(q, mask_BQK), *(x.contiguous() for x in targets), logsum_BhT,
        grad_loss_h.float().contiguous(), squares, pulls, deltas_BhT,
    )  # fmt: skip
    shape = (
        *_strides(q, k, v, do), _mask_stride(mask_BQK), *_factors(numbers, seed), *q.shape[1:]
    )  # fmt: skip
    kernels.backward_queries[_grid(q, constants["R"])](*given, shifts, out, grads[0], *shape, **constants)
    kernels.backward_keys[_grid(q, constants["C"])](*given, grads[1], grads[-1], *shape, **constants)
    return tuple(_narrowed(grad, x.shape[-1]) for grad, x in zip(grads, (*qk_BhTD, *attention)))


def _prepared(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors, padded to one width and with a contiguous last dimension."""
    common = max(x_BhTD.shape[-1] for x_BhTD in tensors)
    padded = [
        torch.nn.functional.pad(x, (0, common - x.shape[-1])) if x.shape[-1] < common else x for x in tensors
    ]
    return [x if x.stride(-1) == 1 else x.contiguous() for x in padded]


def _narrowed(x_BhTD: torch.Tensor, width: int) -> torch.Tensor:
    """The first `width` entries of each position, in the memory layout [B, T, h, D]."""
    if x_BhTD.shape[-1] == width:
        return x_BhTD
    return x_BhTD[..., :width].transpose(1, 2).contiguous().transpose(1, 2)


def _by_use(rows: Sequence[torch.Tensor], names: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    """The coefficients as the kernels take them: `square`, `target` or `direct`, `shift`. A coefficient
    that the loss lacks is replaced by another one, which the kernels do not read."""
    by_name = dict(zip(names, rows))
    pulls_BhT = by_name["direct"] if "direct" in by_name else by_name["target"]
    return by_name.get("square", pulls_BhT), pulls_BhT, by_name["shift"]


def _mask_bytes(q_BhTD: torch.Tensor, mask_BQK: torch.Tensor | None) -> torch.Tensor:
    """The mask; without one the kernels never read that pointer, so any tensor will do."""
    return q_BhTD if mask_BQK is None else mask_BQK.contiguous().view(torch.uint8)


def _factors(numbers: Numbers, seed: torch.Tensor | None) -> tuple[float, float, int]:
    return numbers.scale, numbers.dropout, 0 if seed is None else int(seed)


def _power_of_2(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 1 << (least - 1).bit_length()


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


def _constants(
    q_BhTD: torch.Tensor, mask_BQK: torch.Tensor | None, numbers: Numbers, has_values: bool
) -> dict[str, Any]:
    """Compile-time constants of the kernels."""
    width = q_BhTD.shape[-1]
    block = block_size(q_BhTD.dtype, width)
    exact = q_BhTD.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    return {
        "R": block,
        "C": block,
        "D": max(16, _power_of_2(width)),
        "LOSS": list(ROW_LOSSES).index(numbers.loss),
        "VALUES": has_values,
        "HAS_MASK": mask_BQK is not None,
        "DROPS": numbers.dropout > 0,
        "HAS_OFFSETS": max(numbers.offsets) >= 0,
        "PRECISION": "ieee" if exact else "tf32",
    }
