"""Choice of the kernel for guided heads: Triton where it agrees with the row blocks on this GPU, else those.

Shapes: B batch, h guided heads, T positions, D head width.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from gaguide.guidance.kernel import NO_DROPOUT, Dropout, row_block_attention
from gaguide.guidance.targets import RowTerms

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def guided_attention(
    q_BhTD: torch.Tensor,
    k_BhTD: torch.Tensor,
    v_BhTD: torch.Tensor,
    terms: RowTerms,
    mask_BQK: torch.Tensor | None,
    scale: float,
    dropout: float = 0.0,
    causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention output [B, h, T, D] (dtype of v), loss per head [h], attention mass per head [h].

    The loss carries gradients to q and k; the mass, the mean of sum_q H_pq c_q over rows that can see a
    target, does not. mask_BQK: bool, True where visible; None means causal. causal: whether the mask is a
    subset of the causal one.
    """
    # The seed comes from the CPU generator. Checkpointing restores that generator, so a recomputed forward
    # drops the same entries, and backward generates the mask again instead of keeping T x T bits.
    seed = int(torch.randint(2**62, ()).item()) if dropout > 0 else 0
    given = (q_BhTD, k_BhTD, v_BhTD, terms, mask_BQK, scale, Dropout(dropout, seed))
    if not causal:
        return row_block_attention(*given, causal=False)  # the kernels skip later keys
    fused = fused_attention(q_BhTD.device, q_BhTD.dtype, q_BhTD.shape[-1], v_BhTD.shape[-1])
    return (row_block_attention if fused is None else fused)(*given)


def fused_attention(
    device: torch.device, dtype: torch.dtype, width: int, value_width: int | None = None
) -> Attention | None:
    """The Triton kernels for that device and dtype, or None where they cannot run.

    width: of a head's queries and keys. value_width: of its values; None is the same.

    Before their first use they are compared with the row blocks on this GPU. Where they fail or disagree, on
    a GPU or with a compiler they were never tested on, a warning says so and the run continues, slower.
    """
    if device.type != "cuda" or dtype == torch.float64:
        return None
    return _verified_kernel(device, dtype, width, value_width)


@cache
def _verified_kernel(
    device: torch.device, dtype: torch.dtype, width: int, value_width: int | None = None
) -> Attention | None:
    try:
        from gaguide.guidance.triton_attention import MAX_WIDTH, triton_attention
    except ImportError:
        return None  # not every build of torch includes Triton
    if max(width, value_width or 0) > MAX_WIDTH:
        return None
    try:
        error = disagreement(triton_attention, device, dtype, width, value_width)
        problem = f"it is off by {error:.1e} on this GPU" if error > 20 * torch.finfo(dtype).eps else ""
    except Exception as failure:
        problem = f"{type(failure).__name__}: {failure}"
    if problem:
        warnings.warn(f"guidance runs without its Triton kernel, slower: {problem}", stacklevel=2)
        return None
    return triton_attention


def disagreement(
    kernel: Attention, device: torch.device, dtype: torch.dtype, width: int, value_width: int | None = None
) -> float:
    """Largest difference from the row blocks' results and gradients on small cases.

    Each difference is relative to the largest value of its tensor. The cases compile every variant of the
    kernels except those with dropout.
    """
    with _isolated_autograd(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        B, h, T = 1, 2, 100  # more than one block of queries and of keys
        widths = (width, width, value_width or width, value_width or width)
        q, k, v, weight = (torch.randn(B, h, T, size).to(device, dtype) for size in widths)
        marked_BhT = (torch.rand(B, h, T) < 0.1).to(device, torch.float32)
        ones_BhT = torch.ones_like(marked_BhT)
        causal_1TT = torch.ones(1, T, T, dtype=torch.bool, device=device).tril()
        errors = []
        for offsets, mask_1TT in itertools.product(((), ((1, 1),)), (None, causal_1TT)):
            columns_BhT = marked_BhT.clone()
            for slot, _ in offsets:
                columns_BhT[:, slot] = 0
            terms = RowTerms(columns_BhT, offsets, ones_BhT, ones_BhT, ones_BhT.sum((0, 2)), ones_BhT)
            given = (q, k, v, weight, terms, mask_1TT)
            for x, y in zip(
                _outputs_and_gradients(kernel, *given), _outputs_and_gradients(row_block_attention, *given)
            ):
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
) -> list[torch.Tensor]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, loss_h, mass_h = function(*leaves, terms, mask_1TT, q.shape[-1] ** -0.5, NO_DROPOUT)
    gradients = torch.autograd.grad((out * weight).sum() + loss_h.sum(), leaves)
    return [out.detach(), loss_h.detach(), mass_h, *gradients]
