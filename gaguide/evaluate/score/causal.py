"""Attention of rows that branch late: tokens before the first branch need no mask and half the work.

Kernels skip what causal attention hides, but compute every pair where a mask is given. A row with a long
prompt and the last tokens of its continuations is nearly all prompt. Legend: B rows, H heads, T tokens, D
head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from gaguide.evaluate.schedule.rows import Row

MIN_CAUSAL_TOKENS = 256
"""With fewer tokens before the first branch, a second kernel call costs as much as it saves."""


def causal_before_branches(
    rows: Sequence[Row], mask_B1TT: torch.Tensor | None, min_tokens: int
) -> AbstractContextManager[Any]:
    """Context in which torch's attention with exactly this mask of `rows` is causal up to their first branch.

    It changes nothing where fewer than `min_tokens` tokens come before that branch.
    """
    first_branch = min(min(row.ends) for row in rows)
    if mask_B1TT is None or first_branch < min_tokens:
        return nullcontext()
    return _CausalBeforeBranches(mask_B1TT, first_branch)


class AttentionOverride(TorchFunctionMode):
    """Context in which torch's attention with exactly this mask is computed by `attend` instead."""

    def __init__(self, mask_B1TT: torch.Tensor) -> None:
        super().__init__()
        self.mask_B1TT = mask_B1TT

    def attend(self, function: Callable[..., Any], args: Sequence[torch.Tensor], kwargs: Any) -> torch.Tensor:
        """The output [B, H, T, D] for queries, keys and values `args`; `function` is torch's attention."""
        raise NotImplementedError

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        matches = function is scaled_dot_product_attention and kwargs.get("attn_mask") is self.mask_B1TT
        if not matches or len(args) != 3:  # a model may pass them as keywords
            return function(*args, **kwargs)
        return self.attend(function, args, kwargs)


class _CausalBeforeBranches(AttentionOverride):
    def __init__(self, mask_B1TT: torch.Tensor, tokens: int) -> None:
        super().__init__(mask_B1TT)
        self._tokens = tokens

    def attend(self, function: Callable[..., Any], args: Sequence[torch.Tensor], kwargs: Any) -> torch.Tensor:
        (query_BHTD, key_BHTD, value_BHTD), end = args, self._tokens
        if query_BHTD.shape[2] != self.mask_B1TT.shape[2]:
            return function(*args, **kwargs)
        before_BHTD = function(
            *(one[:, :, :end] for one in args), **kwargs | {"attn_mask": None, "is_causal": True}
        )
        after_BHTD = function(
            query_BHTD[:, :, end:], key_BHTD, value_BHTD, **kwargs | {"attn_mask": self.mask_B1TT[:, :, end:]}
        )
        return torch.cat((before_BHTD, after_BHTD), dim=2)
