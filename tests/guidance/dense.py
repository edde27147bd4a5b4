"""The dense reference: Eq. (1)-(4) with full attention maps and full pattern matrices, in float64.

Shapes: B batch, h heads, T positions, D head width.
"""

from __future__ import annotations

import torch

from gaguide.guidance.patterns import Offset, Target


def pattern_matrix(target: Target, valid_BT: torch.Tensor) -> torch.Tensor:
    """P of Eq. (3), [B, T, T] float64, padding columns unmarked."""
    B, T = valid_BT.shape
    if isinstance(target, Offset):
        p, q = torch.arange(T)[:, None], torch.arange(T)[None]
        marked_BTT = (p - q == target.distance).expand(B, T, T)
    else:
        marked_BTT = target.marked_BT[:, None, :].expand(B, T, T)
    return (marked_BTT & valid_BT[:, None, :]).double()


def dense_maps(
    q_BhTD: torch.Tensor, k_BhTD: torch.Tensor, visible_BTT: torch.Tensor, scale: float
) -> torch.Tensor:
    """H of Eq. (1) under a mask, [B, h, T, T]; rows that see no key are zero."""
    scores = (q_BhTD @ k_BhTD.mT) * scale
    maps = torch.softmax(scores.masked_fill(~visible_BTT[:, None], -torch.inf), -1)
    return torch.where(visible_BTT.any(-1)[:, None, :, None], maps, 0.0).nan_to_num()


def dense_loss(
    h_BTT: torch.Tensor,
    target: Target,
    valid_BT: torch.Tensor,
    visible_BTT: torch.Tensor,
    reduction: str,
    kind: str,
) -> torch.Tensor:
    """Loss of one head: by sequence as docs/guidance.md defines it, averaged over sequences."""
    p_BTT = pattern_matrix(target, valid_BT)
    total = h_BTT.new_zeros(())
    for h_TT, p_TT, visible_TT, valid_T in zip(h_BTT, p_BTT, visible_BTT, valid_BT):
        rows = [p for p in range(len(valid_T)) if valid_T[p]]
        if not any((p_TT[p] * visible_TT[p]).any() for p in rows):
            continue  # no query of the sequence sees a target
        if kind == "normalized":
            seen = {p: (p_TT[p] * visible_TT[p]).sum() for p in rows}
            rows = [p for p in rows if seen[p] > 0]
            target_rows = {p: p_TT[p] * visible_TT[p] / seen[p] for p in rows}
        else:
            target_rows = {p: p_TT[p] for p in rows}
        if not rows:
            continue
        if reduction == "frobenius":
            total = total + sum(((h_TT[p] - target_rows[p]) ** 2).sum() for p in rows)
        else:
            pairs = [((h_TT[p] - target_rows[p]) ** 2)[visible_TT[p]] for p in rows]
            total = total + torch.cat(pairs).mean()
    return total / len(h_BTT)
