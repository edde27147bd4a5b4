"""The differentiable operations of guidance: `attend` (output and loss of heads), `head_losses` (loss alone).

Each exists twice around the same functions: registered with torch.library, with fake kernels and an autograd
formula, so that torch.compile keeps a guided model in one graph; and as an autograd function for eager mode,
where the dispatch of a registered operation would cost 0.2 ms a call (and `setup_context` of an autograd
function 0.05 ms, so that `forward` calls it itself). Under autocast they compute in the
guidance dtype, as elsewhere.

Shapes: B batch, h guided heads, T positions, N coefficients, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from gaguide.guidance import kernel
from gaguide.guidance.kernel import Numbers, guidance_dtype
from gaguide.guidance.losses import ROW_LOSSES
from gaguide.guidance.targets import RowTerms

_Tensors = tuple[torch.Tensor, ...]
_TERMS = 7  # tensors of `RowTerms`


def attend(
    qkv_BhTD: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    terms: RowTerms,
    mask_BQK: torch.Tensor | None,
    numbers: Numbers,
    seed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention output [B, h, T, D] (dtype of v), loss [h] and attention mass [h] of guided heads.

    The loss carries gradients to q and k; the mass does not. mask_BQK: bool [B or 1, T, T], True where
    visible; None is causal. seed: of dropout, int64 on the CPU; drawn there if not given.
    """
    # Checkpointing restores the CPU's generator, so a recomputed forward drops the same entries, and backward
    # generates them again instead of keeping T x T bits.
    if seed is None and numbers.dropout > 0:
        seed = torch.randint(2**62, ())
    run = torch.ops.gaguide.attend if torch.compiler.is_compiling() else _Attend.apply
    out_BhTD, loss_h, mass_h, _ = run(*qkv_BhTD, terms.tensors, mask_BQK, seed, *_given(numbers))
    return out_BhTD.to(qkv_BhTD[2].dtype), loss_h, mass_h


def head_losses(
    qk_BhTD: tuple[torch.Tensor, torch.Tensor],
    terms: RowTerms,
    mask_BQK: torch.Tensor | None,
    numbers: Numbers,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss [h] and attention mass [h] of heads, as `attend`, without their output."""
    run = torch.ops.gaguide.head_losses if torch.compiler.is_compiling() else _HeadLosses.apply
    loss_h, mass_h, _ = run(*qk_BhTD, terms.tensors, mask_BQK, *_given(numbers))
    return loss_h, mass_h


# Registered operations take tensors, numbers and lists of them: the fields of `Numbers`, in this order.
_NUMBERS = "int[] offsets, str loss, float scale, bool causal, float dropout, int rows, bool fused"


def _given(numbers: Numbers) -> tuple[Any, ...]:
    return (
        list(numbers.offsets), numbers.loss, numbers.scale, numbers.causal, numbers.dropout, numbers.rows,
        numbers.fused,
    )  # fmt: skip


def _numbers(given: Sequence[Any]) -> Numbers:
    return Numbers(tuple(given[0]), *given[1:])


def _kernels(numbers: Numbers) -> Any:
    """The module with the functions `forward` and `backward` that compute."""
    if not numbers.fused:
        return kernel
    from gaguide.guidance import triton_attention  # not every build of torch includes Triton

    return triton_attention


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    terms: Sequence[torch.Tensor],
    mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    *given: Any,
) -> _Tensors:
    numbers = _numbers(given)
    done = _kernels(numbers).forward(
        (q, k, v), RowTerms.from_tensors(terms, numbers.offsets), mask, seed, numbers
    )
    assert done.out_BhTD is not None
    return done.out_BhTD, done.loss_h, done.mass_h, done.coefficients_NBhT


def _attend_backward(
    grads: Sequence[torch.Tensor],
    saved: Sequence[torch.Tensor],
    mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    *given: Any,
) -> _Tensors:
    grad_out, grad_loss = grads
    q, k, v, columns, offsets, out, coefficients = saved
    numbers = _numbers(given)
    return _kernels(numbers).backward(
        grad_loss, (q, k), (v, out, grad_out), (columns, offsets), coefficients, mask, seed, numbers
    )


def _losses(
    q: torch.Tensor, k: torch.Tensor, terms: Sequence[torch.Tensor], mask: torch.Tensor | None, *given: Any
) -> _Tensors:
    numbers = _numbers(given)
    done = _kernels(numbers).forward(
        (q, k), RowTerms.from_tensors(terms, numbers.offsets), mask, None, numbers
    )
    return done.loss_h, done.mass_h, done.coefficients_NBhT


def _losses_backward(
    grad_loss: torch.Tensor, saved: Sequence[torch.Tensor], mask: torch.Tensor | None, *given: Any
) -> _Tensors:
    q, k, columns, offsets, coefficients = saved
    numbers = _numbers(given)
    return _kernels(numbers).backward(
        grad_loss, (q, k), (), (columns, offsets), coefficients, mask, None, numbers
    )


def _fake_losses(q: torch.Tensor, terms: Sequence[torch.Tensor], numbers: Numbers) -> _Tensors:
    columns_BhT = terms[0]
    loss_h = columns_BhT.new_empty(q.shape[1])
    rows = len(ROW_LOSSES[numbers.loss].coefficients) + numbers.fused
    return loss_h, torch.empty_like(loss_h), columns_BhT.new_empty(rows, *columns_BhT.shape)


def _fake_gradient(x_BhTD: torch.Tensor) -> torch.Tensor:
    B, h, T, D = x_BhTD.shape
    return x_BhTD.new_empty(B, T, h, D).transpose(1, 2)


def _once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's `once_differentiable`, also where the gradient of the loss is a constant.

    torch then takes the gradients for constants too, although they depend on queries and keys.
    """
    once = once_differentiable(backward)

    @wraps(backward)
    def _backward(ctx: Any, *grads: torch.Tensor) -> Any:
        if torch.is_grad_enabled():  # `create_graph`
            grads = (grads[0].detach().requires_grad_(), *grads[1:])
        return once(ctx, *grads)

    return _backward


class _Attend(torch.autograd.Function):
    """`attend` in eager mode, and the formula of the registered operation."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> _Tensors:
        output = _attend(*inputs)
        _Attend.keep(ctx, inputs, output)
        return output

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: _Tensors) -> None:
        q, k, v, terms, mask, seed, *ctx.given = inputs
        out, _, mass_h, coefficients = output
        ctx.mark_non_differentiable(mass_h, coefficients)
        ctx.save_for_backward(q, k, v, terms[0], terms[-1], out, coefficients, mask, seed)

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _Attend.formula(_attend_backward, None, ctx, *grads)

    @staticmethod
    def formula(
        run: Callable[..., _Tensors], terms: list[None] | None, ctx: Any, *grads: torch.Tensor
    ) -> Any:
        *saved, mask, seed = ctx.saved_tensors
        found = run(grads[:2], saved, mask, seed, *ctx.given)
        return (*found, terms, None, None, *(None for _ in ctx.given))


class _HeadLosses(torch.autograd.Function):
    """`head_losses` in eager mode, and the formula of the registered operation."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> _Tensors:
        output = _losses(*inputs)
        _HeadLosses.keep(ctx, inputs, output)
        return output

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: _Tensors) -> None:
        q, k, terms, mask, *ctx.given = inputs
        _, mass_h, coefficients = output
        ctx.mark_non_differentiable(mass_h, coefficients)
        ctx.save_for_backward(q, k, terms[0], terms[-1], coefficients, mask)

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _HeadLosses.formula(_losses_backward, None, ctx, *grads)

    @staticmethod
    def formula(
        run: Callable[..., _Tensors], terms: list[None] | None, ctx: Any, *grads: torch.Tensor
    ) -> Any:
        *saved, mask = ctx.saved_tensors
        found = run(grads[0], saved, mask, *ctx.given)
        return (*found, terms, None, *(None for _ in ctx.given))


def _register() -> None:
    """Register both operations and their backward operations, with the compiler's information."""
    attend_op = torch.library.custom_op(
        "gaguide::attend",
        _attend,
        mutates_args=(),
        schema="(Tensor q, Tensor k, Tensor v, Tensor[] terms, Tensor? mask, Tensor? seed, "
        f"{_NUMBERS}) -> (Tensor, Tensor, Tensor, Tensor)",
    )
    attend_backward = torch.library.custom_op(
        "gaguide::attend_backward",
        _attend_backward,
        mutates_args=(),
        schema=f"(Tensor[] grads, Tensor[] saved, Tensor? mask, Tensor? seed, {_NUMBERS}) "
        "-> (Tensor, Tensor, Tensor)",
    )
    losses_op = torch.library.custom_op(
        "gaguide::head_losses",
        _losses,
        mutates_args=(),
        schema=f"(Tensor q, Tensor k, Tensor[] terms, Tensor? mask, {_NUMBERS}) -> (Tensor, Tensor, Tensor)",
    )
    losses_backward = torch.library.custom_op(
        "gaguide::head_losses_backward",
        _losses_backward,
        mutates_args=(),
        schema=f"(Tensor grad_loss, Tensor[] saved, Tensor? mask, {_NUMBERS}) -> (Tensor, Tensor)",
    )

    @attend_op.register_fake
    def _(q: Any, k: Any, v: Any, terms: Any, mask: Any, seed: Any, *given: Any) -> Any:
        numbers = _numbers(given)
        dtype = v.dtype if numbers.fused else guidance_dtype(v.dtype)
        out = _fake_gradient(v) if numbers.fused else v.new_empty(v.shape, dtype=dtype)
        return out, *_fake_losses(q, terms, numbers)

    @attend_backward.register_fake
    def _(grads: Any, saved: Any, *_: Any) -> Any:
        return tuple(map(_fake_gradient, saved[:3]))

    @losses_op.register_fake
    def _(q: Any, k: Any, terms: Any, mask: Any, *given: Any) -> Any:
        return _fake_losses(q, terms, _numbers(given))

    @losses_backward.register_fake
    def _(grad_loss: Any, saved: Any, *_: Any) -> Any:
        return tuple(map(_fake_gradient, saved[:2]))

    no_terms = [None] * _TERMS  # a list's gradient is a list here, and None for an autograd function
    attend_op.register_autograd(
        partial(_Attend.formula, attend_backward, no_terms), setup_context=_Attend.keep
    )
    losses_op.register_autograd(
        partial(_HeadLosses.formula, losses_backward, no_terms), setup_context=_HeadLosses.keep
    )


_register()
