"""Choice of the kernel for guided heads: Triton where it agrees with the row blocks on this GPU, else those.

Shapes: B batch, h guided heads, T positions, D head width.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch

from gaguide.guidance.kernel import Numbers
from gaguide.guidance.operations import attend, head_losses
from gaguide.guidance.targets import RowTerms

Attention = Callable[..., tuple[torch.Tensor, ...]]
"""A function like `operations.attend`, or without values like `operations.head_losses`."""


def guided_attention(
    qkv_BhTD: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    terms: RowTerms,
    mask_BQK: torch.Tensor | None,
    numbers: Numbers,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`operations.attend` by the fastest kernel that this device has."""
    return attend(qkv_BhTD, terms, mask_BQK, _choose(qkv_BhTD, numbers))


def guided_losses(
    qk_BhTD: tuple[torch.Tensor, torch.Tensor],
    terms: RowTerms,
    mask_BQK: torch.Tensor | None,
    numbers: Numbers,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`operations.head_losses` by the fastest kernel that this device has."""
    return head_losses(qk_BhTD, terms, mask_BQK, _choose(qk_BhTD, numbers))


def _choose(given_BhTD: Sequence[torch.Tensor], numbers: Numbers) -> Numbers:
    # The kernels skip later keys.
    if numbers.causal and is_fused(given_BhTD, numbers.loss):
        return replace(numbers, fused=True)
    return numbers


def is_fused(given_BhTD: Sequence[torch.Tensor], loss: str) -> bool:
    """Whether the Triton kernels run for queries and keys, with or without values, like these.

    Before the first use for a device, dtypes and widths they are compared with the row blocks on this GPU.
    If they fail or disagree, as on a GPU or with a compiler on which they were never tested, there is a
    warning and the run continues, slower.
    """
    device, dtypes = given_BhTD[0].device, tuple(x.dtype for x in given_BhTD)
    if device.type != "cuda" or torch.float64 in dtypes:
        return False
    return _is_verified(device, dtypes, tuple(x.shape[-1] for x in given_BhTD), loss)


@torch.compiler.assume_constant_result  # computed, not traced, while a graph is traced
@cache
def _is_verified(
    device: torch.device, dtypes: tuple[torch.dtype, ...], widths: tuple[int, ...], loss: str
) -> bool:
    try:
        from gaguide.guidance.triton_attention import MAX_WIDTH
    except ImportError:
        return False  # not every build of torch includes Triton
    if max(widths) > MAX_WIDTH:
        return False
    limit = 20 * max(torch.finfo(dtype).eps for dtype in dtypes)
    try:
        error = disagreement(device, dtypes, widths, loss)
        problem = f"it is off by {error:.1e} on this GPU" if error > limit else ""
    except Exception as failure:
        problem = f"{type(failure).__name__}: {failure}"
    if problem:
        warnings.warn(f"guidance runs without its Triton kernel, slower: {problem}", stacklevel=2)
    return not problem


def disagreement(
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    widths: tuple[int, ...],
    loss: str = "squared",
    kernels: Attention | None = None,
) -> float:
    """Largest difference of the Triton kernels' results and gradients from the row blocks' on small cases.

    Each difference is relative to the largest value of its tensor. The cases compile every variant of the
    kernels for this loss except those with dropout. dtypes, widths: of a head's queries and keys, and of its
    values where the loss is computed with its attention. kernels: others than `operations`' own.
    """
    plain = attend if len(dtypes) == 3 else head_losses
    with _isolated_autograd(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        B, h, T = 1, 2, 100  # more than one block of queries and of keys
        given = [torch.randn(B, h, T, width).to(device, dtype) for dtype, width in zip(dtypes, widths)]
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
            ours = _outputs_and_gradients(kernels or plain, given, terms, mask_1TT, numbers)
            theirs = _outputs_and_gradients(plain, given, terms, mask_1TT, replace(numbers, fused=False))
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
    given_BhTD: Sequence[torch.Tensor],
    terms: RowTerms,
    mask_1TT: torch.Tensor | None,
    numbers: Numbers,
) -> list[torch.Tensor]:
    leaves = [x.detach().requires_grad_() for x in given_BhTD]
    *out, loss_h, mass_h = function(leaves, terms, mask_1TT, numbers)
    total = loss_h.sum()
    for out_BhTD in out:
        weight = torch.randn(out_BhTD.shape, generator=torch.Generator().manual_seed(1))
        total = total + (out_BhTD * weight.to(out_BhTD)).sum()
    gradients = torch.autograd.grad(total, leaves)
    return [*(x.detach() for x in out), loss_h.detach(), mass_h, *gradients]
