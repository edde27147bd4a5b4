"""Choice of the kernel for guided heads: Triton where it agrees with the row blocks on this GPU, else those.

Shapes: B batch, h guided heads, T positions, D head width.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch

from gaguide.guidance.kernel import Numbers
from gaguide.guidance.operations import attend
from gaguide.guidance.targets import RowTerms

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""A function like `operations.attend`."""


def guided_attention(
    qkv_BhTD: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    terms: RowTerms,
    mask_BQK: torch.Tensor | None,
    numbers: Numbers,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`operations.attend` by the fastest kernel that this device has."""
    q_BhTD, _, v_BhTD = qkv_BhTD
    # The kernels skip later keys.
    if numbers.causal and is_fused(q_BhTD, v_BhTD.shape[-1], numbers.loss):
        numbers = replace(numbers, fused=True)
    return attend(qkv_BhTD, terms, mask_BQK, numbers)


def is_fused(q_BhTD: torch.Tensor, value_width: int, loss: str) -> bool:
    """Whether the Triton kernels run on the queries' device, dtype and width.

    Before their first use they are compared with the row blocks on this GPU. Where they fail or disagree, on
    a GPU or with a compiler they were never tested on, a warning says so and the run continues, slower.
    """
    if q_BhTD.device.type != "cuda" or q_BhTD.dtype == torch.float64:
        return False
    return _is_verified(q_BhTD.device, q_BhTD.dtype, q_BhTD.shape[-1], value_width, loss)


@torch.compiler.assume_constant_result  # computed, and not traced, while a graph is traced
@cache
def _is_verified(device: torch.device, dtype: torch.dtype, width: int, value_width: int, loss: str) -> bool:
    try:
        from gaguide.guidance.triton_attention import MAX_WIDTH
    except ImportError:
        return False  # not every build of torch includes Triton
    if max(width, value_width) > MAX_WIDTH:
        return False
    try:
        error = disagreement(device, dtype, (width, value_width), loss)
        problem = f"it is off by {error:.1e} on this GPU" if error > 20 * torch.finfo(dtype).eps else ""
    except Exception as failure:
        problem = f"{type(failure).__name__}: {failure}"
    if problem:
        warnings.warn(f"guidance runs without its Triton kernel, slower: {problem}", stacklevel=2)
    return not problem


def disagreement(
    device: torch.device,
    dtype: torch.dtype,
    widths: tuple[int, int],
    loss: str = "squared",
    kernels: Attention = attend,
) -> float:
    """Largest difference of the Triton kernels' results and gradients from the row blocks' on small cases.

    Each difference is relative to the largest value of its tensor. The cases compile every variant of the
    kernels for this loss except those with dropout. widths: of a head's queries and keys, and of its values.
    """
    with _isolated_autograd(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        B, h, T = 1, 2, 100  # more than one block of queries and of keys
        q, k, v, weight = (torch.randn(B, h, T, widths[i]).to(device, dtype) for i in (0, 0, 1, 1))
        marked_BhT = (torch.rand(B, h, T) < 0.1).to(device, torch.float32)
        marked_BhT[..., 1] = 1  # so that all rows but the first see a target
        rows_BhT = torch.ones_like(marked_BhT)
        rows_BhT[..., :2] = 0
        causal_1TT = torch.ones(1, T, T, dtype=torch.bool, device=device).tril()
        errors = []
        for offset, mask_1TT in itertools.product((-1, 1), (None, causal_1TT)):
            columns_BhT = marked_BhT.clone()
            if offset >= 0:
                columns_BhT[:, 1] = 0
            sums_h = rows_BhT.sum((0, 2))
            levels_BhT = torch.full_like(rows_BhT, 0.5)
            offsets_h = torch.tensor([-1, offset], dtype=torch.int32, device=device)
            terms = RowTerms(
                columns_BhT, (-1, offset), rows_BhT, levels_BhT, sums_h, rows_BhT, sums_h, offsets_h
            )
            numbers = Numbers(terms.offsets, loss, widths[0] ** -0.5, fused=True)
            given = (q, k, v, weight, terms, mask_1TT)
            ours = _outputs_and_gradients(kernels, *given, numbers)
            theirs = _outputs_and_gradients(attend, *given, replace(numbers, fused=False))
            for x, y in zip(ours, theirs):
                errors.append(float((x.float() - y.float()).abs().max() / y.float().abs().max()))
    return max(errors)


@contextmanager
def _isolated_autograd() -> Iterator[None]:
    """Inside, autograd is enabled, and hooks on saved tensors from outside do not apply.

    The first use of the kernels may be in a checkpointed layer, which would count these tensors as its own,
    or in inference mode.
    """

    def identity(x: torch.Tensor) -> torch.Tensor:
        return x

    hooks = torch.autograd.graph.saved_tensors_hooks(identity, identity)
    with torch.inference_mode(False), torch.enable_grad(), hooks:
        yield


def _outputs_and_gradients(
    function: Attention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weight: torch.Tensor,
    terms: RowTerms,
    mask_1TT: torch.Tensor | None,
    numbers: Numbers,
) -> list[torch.Tensor]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, loss_h, mass_h = function(leaves, terms, mask_1TT, numbers)
    gradients = torch.autograd.grad((out * weight).sum() + loss_h.sum(), leaves)
    return [out.detach(), loss_h.detach(), mass_h, *gradients]
