"""The dense reference: Eq. (1)-(4) with full attention maps and full pattern matrices, in float64.

Shapes: B batch, h heads, T positions, D head width.
"""

from __future__ import annotations

import math

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
    loss: str = "squared",
) -> torch.Tensor:
    """Loss of one head: by sequence as docs/guidance.md defines it, averaged over sequences."""
    p_BTT = pattern_matrix(target, valid_BT)
    if loss != "squared":
        seen_BTT = p_BTT.bool() & visible_BTT & valid_BT[:, :, None]
        return sum(
            (_row_losses(*sequence, loss) for sequence in zip(h_BTT, seen_BTT, visible_BTT)),
            h_BTT.new_zeros(()),
        ) / len(h_BTT)
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


THRESHOLD = 0.3


def _row_losses(
    h_TT: torch.Tensor, seen_TT: torch.Tensor, visible_TT: torch.Tensor, loss: str
) -> torch.Tensor:
    """Mean over the rows of one sequence that see a target; 0 without any."""
    rows = []
    for h_T, seen_T, visible_T in zip(h_TT, seen_TT, visible_TT):
        mass, n = h_T[seen_T].sum(), seen_T.double().sum()
        if n == 0 or (loss == "avoid" and not (visible_T & ~seen_T).any()):
            continue
        if loss == "log-mass":
            rows.append(-mass.log())
        elif loss == "kl":
            rows.append((1 / n * (1 / n / h_T[seen_T]).log()).sum())
        elif loss == "hinge":
            rows.append((math.log(THRESHOLD) - mass.log()).clamp(min=0))
        else:
            rows.append(-h_T[visible_T & ~seen_T].sum().log())
    return torch.stack(rows).mean() if rows else h_TT.sum() * 0
