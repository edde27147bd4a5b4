"""The model's attention mask as guidance needs it, and the masks that guidance cannot represent.

Shapes: B batch, T positions, Q query positions, K key positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gaguide.errors import Fault, UserError


@dataclass(frozen=True)
class Visibility:
    """The keys that each query sees."""

    mask_BQK: torch.Tensor | None
    """bool [B or 1, T, T], True where visible; None is causal."""
    is_causal: bool = True
    """Whether no query sees a later key."""
    additive: torch.Tensor | None = None
    """The model's mask where some query sees nothing but hidden keys of finite value; else None, and the
    output of queries that see nothing is zero."""

    def fill_blind_rows(
        self,
        out_BhTD: torch.Tensor,
        q_BhTD: torch.Tensor,
        k_BhTD: torch.Tensor,
        v_BhTD: torch.Tensor,
        scale: float,
        dropout: float,
    ) -> torch.Tensor:
        """The output with the rows of queries that see nothing by SDPA, whose gradients reach q and k too."""
        if self.additive is None or self.mask_BQK is None:
            return out_BhTD
        own_BhTD = torch.nn.functional.scaled_dot_product_attention(
            q_BhTD, k_BhTD, v_BhTD, self.additive, dropout, scale=scale
        )
        blind_BQ = ~self.mask_BQK.any(-1)
        return torch.where(blind_BQ[:, None, :, None], own_BhTD, out_BhTD)


def read_mask(mask: torch.Tensor | None, T: int) -> Visibility:
    """Visibility by the model's mask [B or 1, 1, T, T], Boolean or additive.

    An additive mask has 0 where a key is visible, and -inf or the lowest value of its dtype where it is not.
    Raises `UserError` for one with other values (biases, as in ALiBi) and for one mask a head.
    """
    if mask is None:
        return Visibility(None)
    if mask.shape[1] != 1:
        raise UserError(_fault(f"has a separate mask for each of {mask.shape[1]} heads"))
    given_BQK = mask[:, 0, :T, :T]
    if given_BQK.stride(0) == 0:
        given_BQK = given_BQK[:1]  # one mask for all sequences, which a kernel would copy for each
    additive = given_BQK.dtype != torch.bool
    visible_BQK = visible_keys(given_BQK)
    later = (visible_BQK & ~torch.ones(T, T, dtype=torch.bool, device=mask.device).tril_()).any()
    biased = (visible_BQK & (given_BQK != 0)).any() if additive else torch.zeros_like(later)
    blind = ~visible_BQK.any(-1).all() if additive else torch.zeros_like(later)
    if torch.compiler.is_compiling():
        # A compiled graph cannot branch on values.
        torch._assert_async(~later, "under torch.compile guidance needs a causal attention mask")
        torch._assert_async(~biased, _BIASED)
        return Visibility(visible_BQK, True, given_BQK[:, None] if additive else None)
    # One copy to the host for all three.
    sees_later, is_biased, has_blind = torch.stack([later, biased, blind]).tolist()
    if is_biased or mask.requires_grad:
        raise UserError(_fault(_BIASED))
    return Visibility(visible_BQK, not sees_later, given_BQK[:, None] if has_blind else None)


def visible_keys(mask: torch.Tensor) -> torch.Tensor:
    """Whether the key of each entry is visible, bool of the mask's shape; the mask is Boolean or additive."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


_BIASED = "adds biases other than 0 and -inf to its attention scores (ALiBi, relative positions)"


def _fault(problem: str) -> Fault:
    return Fault(
        "attention_mask",
        f"the model {problem}, which guided heads would ignore",
        "pass a Boolean mask or a mask of 0 and -inf for all heads, or use another model",
    )
