"""Row terms: Eq. (2) rewritten so that neither H nor P is needed as a whole.

For query p with visible keys V_p, targets c and n_p = sum of c over V_p, the row's share of ||H - P||^2 is

    row_p = sum over q in V_p of (H_pq - t_p c_q)^2  +  const_p

with t_p = 1 (indicator) or 1/n_p (normalized). The loss of a head is sum_p r_p row_p; r_p is 0 for rows that
do not count and else the factor of the reduction. Other losses have other rows, and their own meaning of t_p
(losses.py). Everything here depends on token ids and masks only.

Shapes: B batch, h guided heads of one layer, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from gaguide.guidance.patterns import Offset, Target
from gaguide.guidance.plan import Loss, Reduction, TargetKind


@dataclass(frozen=True)
class RowTerms:
    """Inputs of the loss of `h` heads other than q and k; floating-point tensors have the guidance dtype."""

    columns_BhT: torch.Tensor
    """1 where the key is a target of every query; zero for a head with an offset."""
    offsets: tuple[int, ...]
    """For each head the distance of a target that moves with the query, -1 for a head with target columns."""
    weight_BhT: torch.Tensor
    """r_p."""
    level_BhT: torch.Tensor
    """t_p."""
    constant_h: torch.Tensor
    """Sum over rows of r_p const_p."""
    seen_BhT: torch.Tensor
    """1 for valid queries with at least one visible target, over which attention mass is averaged."""
    queries_h: torch.Tensor
    """Number of these queries of each head."""
    offsets_h: torch.Tensor
    """`offsets` on the device, int32, made once for all layers that share the terms."""

    @property
    def moving(self) -> list[tuple[int, int]]:
        """(index in h, distance) of the heads whose target moves with the query."""
        return [(slot, distance) for slot, distance in enumerate(self.offsets) if distance >= 0]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All fields except the offsets, as `from_tensors` takes them."""
        return [
            self.columns_BhT, self.weight_BhT, self.level_BhT, self.constant_h, self.seen_BhT, self.queries_h,
            self.offsets_h,
        ]  # fmt: skip

    @classmethod
    def from_tensors(cls, tensors: Sequence[torch.Tensor], offsets: Sequence[int]) -> RowTerms:
        """The terms from a registered operation's arguments."""
        columns_BhT, *others = tensors
        return cls(columns_BhT, tuple(offsets), *others)

    def take(self, slots: Sequence[int]) -> RowTerms:
        """The terms of these heads, in this order; a head may be taken several times."""
        if list(slots) == list(range(len(self.offsets))):
            return self
        offsets, device = [self.offsets[slot] for slot in slots], self.offsets_h.device
        index = _on_device(slots, torch.int64, device)
        taken = [x.index_select(0 if x.ndim == 1 else 1, index) for x in self.tensors[:-1]]
        return self.from_tensors([*taken, _on_device(offsets, torch.int32, device)], offsets)

    def mean_mass(self, mass_BhT: torch.Tensor) -> torch.Tensor:
        """Attention mass by head [h], averaged over rows that see a target; NaN where none sees one."""
        return (mass_BhT * self.seen_BhT).sum((0, 2)) / self.queries_h


def row_terms(
    targets: Sequence[Target],
    valid_BT: torch.Tensor,
    mask_BQK: torch.Tensor | None,
    reduction: Reduction,
    target_kind: TargetKind,
    dtype: torch.dtype,
    loss: Loss = "squared",
    threshold: float = 1.0,
    is_padded: bool = True,
) -> RowTerms:
    """Row terms of one target per head.

    reduction, target_kind: of the loss `squared`. threshold: of the loss `hinge`. The losses other than
    `squared` average over the rows that see a target (`avoid`: a target and another key).

    valid_BT: bool, False on padding. mask_BQK: bool [B or 1, T, T], True where a query may see a key; None
    means causal. is_padded: False where `valid_BT` is known to be True everywhere, which saves operations.
    """
    B = len(valid_BT)
    columns = [
        torch.zeros_like(valid_BT) if isinstance(target, Offset) else target.marked_BT for target in targets
    ]
    columns_BhT = torch.stack(columns, 1)
    if is_padded:
        columns_BhT = columns_BhT & valid_BT[:, None]
    columns_BhT = columns_BhT.to(dtype)
    offsets = tuple(target.distance if isinstance(target, Offset) else -1 for target in targets)
    moving = [(slot, distance) for slot, distance in enumerate(offsets) if distance >= 0]
    visible_BT, count_BhT = _visible(columns_BhT, moving, valid_BT, mask_BQK)

    sees_BhT = count_BhT > 0
    if is_padded:
        sees_BhT = sees_BhT & valid_BT[:, None]
    seen_BhT = sees_BhT.to(dtype)
    queries_h = seen_BhT.sum((0, 2))
    offsets_h = _on_device(offsets, torch.int32, valid_BT.device)
    if loss != "squared":
        parts_BhT = sees_BhT & (visible_BT[:, None] > count_BhT) if loss == "avoid" else sees_BhT
        weight_BhT = parts_BhT.to(dtype) / parts_BhT.sum(-1, keepdim=True).clamp(min=1) / B
        level_BhT = 1 / count_BhT.clamp(min=1) if loss == "kl" else torch.full_like(count_BhT, threshold)
        constant_h = torch.zeros_like(queries_h)
        return RowTerms(
            columns_BhT, offsets, weight_BhT, level_BhT, constant_h, seen_BhT, queries_h, offsets_h
        )

    if target_kind == "normalized":
        takes_part_BhT, level_BhT = sees_BhT, 1 / count_BhT.clamp(min=1)
    else:
        # A sequence without any target of a head has nothing for it to learn.
        takes_part_BhT, level_BhT = sees_BhT.any(-1, keepdim=True), torch.ones_like(count_BhT)
        if is_padded:
            takes_part_BhT = takes_part_BhT & valid_BT[:, None]
    weight_BhT = takes_part_BhT.to(dtype) / B
    if reduction == "mean":
        pairs_Bh = (takes_part_BhT * visible_BT[:, None]).sum(-1, keepdim=True)
        weight_BhT = weight_BhT / pairs_Bh.clamp(min=1)
    constant_h = torch.zeros_like(queries_h)
    if reduction == "frobenius" and target_kind != "normalized":
        # In Eq. (3) P also marks columns that the query cannot see, where H is zero: a constant in the loss.
        all_BhT = columns_BhT.sum(-1, keepdim=True).expand_as(count_BhT)
        if moving:
            all_BhT = all_BhT.clone()
            for slot, distance in moving:
                all_BhT[:, slot] = _shifted(valid_BT, distance).to(dtype)
        constant_h = (weight_BhT * (all_BhT - count_BhT)).sum((0, 2))
    weight_BhT = weight_BhT.expand_as(count_BhT).contiguous()
    return RowTerms(columns_BhT, offsets, weight_BhT, level_BhT, constant_h, seen_BhT, queries_h, offsets_h)


def _on_device(numbers: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The numbers as a tensor that nobody changes, copied to the device once."""
    if torch.compiler.is_compiling():
        return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)
    return _kept(tuple(numbers), dtype, device)


@cache
def _kept(numbers: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # or no later backward could save it
        return torch.tensor(numbers, dtype=dtype, device=device)


def _visible(
    columns_BhT: torch.Tensor,
    moving: Sequence[tuple[int, int]],
    valid_BT: torch.Tensor,
    mask_BQK: torch.Tensor | None,
    rows: int = 256,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of visible keys [B, T] and of visible targets [B, h, T], by query."""
    B, _, T = columns_BhT.shape
    if mask_BQK is None:
        visible_BT = torch.arange(1, T + 1, device=columns_BhT.device, dtype=columns_BhT.dtype).expand(B, T)
        count_BhT = columns_BhT.cumsum(-1)
    else:
        visible_BT = mask_BQK.sum(-1).to(columns_BhT.dtype).expand(B, T)
        # In row blocks: a float copy of the whole mask would be a T x T tensor for every sequence.
        with torch.autocast(columns_BhT.device.type, enabled=False):  # it would count in 16 bits
            count_BhT = torch.cat(
                [
                    (mask_BQK[:, at : at + rows].to(columns_BhT.dtype) @ columns_BhT.mT).mT
                    for at in range(0, T, rows)
                ],
                -1,
            )
    for slot, distance in moving:
        shifted_BT = _shifted(valid_BT, distance)
        if mask_BQK is not None and distance < T:
            shifted_BT[:, distance:] &= mask_BQK.diagonal(-distance, 1, 2)
        count_BhT[:, slot] = shifted_BT.to(columns_BhT.dtype)
    return visible_BT, count_BhT


def _shifted(valid_BT: torch.Tensor, distance: int) -> torch.Tensor:
    """True for queries whose key `distance` positions before exists and is not padding."""
    shifted_BT = torch.zeros_like(valid_BT)
    if distance < valid_BT.shape[1]:
        shifted_BT[:, distance:] = valid_BT[:, : valid_BT.shape[1] - distance]
    return shifted_BT
