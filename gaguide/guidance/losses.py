"""Row losses: the loss of a guided head's attention row, and its derivative in a form for every kernel.

For query p with attention row H (before dropout), visible targets c (0 or 1), their number n, their mass
m = sum H c, and the row terms r_p (weight) and t_p (level) of targets.py:

    squared    sum (H - t c)^2           Eq. (2) of the study; t is 1, or 1/n where rows are normalized
    log-mass   -log m                    the targets together get the row
    kl         sum t c log(t c / H)      each target gets an equal part of it; t = 1/n
    hinge      max(0, log t - log m)     the targets together get at least the part t, a setting
    avoid      -log(1 - m)               the other keys together get the row

Each derivative with respect to the scores S has the form

    dS_pq = H_pq (square_p H_pq + target_p c_pq - shift_p) + direct_p c_pq

so a kernel needs the coefficients of the rows and no knowledge of the loss. A further loss is an entry of
`ROW_LOSSES` with the row sums it needs, and its lines in triton_kernels.py.

Shapes: B batch, h guided heads, T positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gaguide.guidance.targets import RowTerms


@dataclass(frozen=True)
class RowSums:
    """Sums over the visible keys of each row, in the guidance dtype; None if the loss does not need them."""

    mass_BhT: torch.Tensor
    """Sum of H c."""
    squares_BhT: torch.Tensor | None = None
    """Sum of H^2."""
    distances_BhT: torch.Tensor | None = None
    """Sum of (H - t c)^2, from the differences: sum H^2 - 2 t m + t^2 n would cancel to noise, even below
    zero, once a head attends to its targets."""
    logs_BhT: torch.Tensor | None = None
    """Sum of c log H, from the scores: H itself may underflow."""
    rest_BhT: torch.Tensor | None = None
    """Sum of H (1 - c): 1 - m would cancel where m is near 1."""


_Rows = tuple[torch.Tensor, dict[str, torch.Tensor]]  # loss of each row, and its coefficients, before weights


@dataclass(frozen=True)
class RowLoss:
    """One loss, for kernels."""

    needs: frozenset[str]
    """Row sums other than the mass."""
    coefficients: tuple[str, ...]
    """Those of `square`, `target`, `direct` and `shift` that are not zero, in this order."""
    rows: Callable[[RowSums, RowTerms], _Rows]

    def reduce(self, sums: RowSums, terms: RowTerms) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss by head [h], and the coefficients [number, B, h, T] of its derivative."""
        rows_BhT, by_name = self.rows(sums, terms)
        loss_h = (terms.weight_BhT * rows_BhT).sum((0, 2)) + terms.constant_h
        return loss_h, torch.stack([by_name[name] * terms.weight_BhT for name in self.coefficients])

    def named(self, coefficients_NBhT: torch.Tensor) -> dict[str, torch.Tensor]:
        """The coefficients [B, h, T] by name."""
        return dict(zip(self.coefficients, coefficients_NBhT.unbind()))


def _squared(sums: RowSums, terms: RowTerms) -> _Rows:
    assert sums.squares_BhT is not None and sums.distances_BhT is not None
    level_BhT = terms.level_BhT
    return sums.distances_BhT, {
        "square": torch.full_like(level_BhT, 2),
        "target": -2 * level_BhT,
        "shift": 2 * (sums.squares_BhT - level_BhT * sums.mass_BhT),
    }


def _log_mass(sums: RowSums, terms: RowTerms) -> _Rows:
    # Rows without a visible target have weight 0, and a mass that underflows must not become infinite.
    mass_BhT = sums.mass_BhT.clamp(min=torch.finfo(sums.mass_BhT.dtype).tiny)
    return -mass_BhT.log(), {"target": -1 / mass_BhT, "shift": -torch.ones_like(mass_BhT)}


def _kl(sums: RowSums, terms: RowTerms) -> _Rows:
    assert sums.logs_BhT is not None
    level_BhT = terms.level_BhT
    rows_BhT = level_BhT.log() - level_BhT * sums.logs_BhT
    return rows_BhT, {"direct": -level_BhT, "shift": -torch.ones_like(level_BhT)}


def _hinge(sums: RowSums, terms: RowTerms) -> _Rows:
    rows_BhT, coefficients = _log_mass(sums, terms)
    below_BhT = sums.mass_BhT < terms.level_BhT
    return (rows_BhT + terms.level_BhT.log()) * below_BhT, {
        name: value * below_BhT for name, value in coefficients.items()
    }


def _avoid(sums: RowSums, terms: RowTerms) -> _Rows:
    # A mass within rounding of 1 counts as 1 - epsilon: beyond it the derivative would be noise.
    assert sums.rest_BhT is not None
    rest_BhT = sums.rest_BhT.clamp(min=torch.finfo(sums.rest_BhT.dtype).eps)
    return -rest_BhT.log(), {"target": 1 / rest_BhT, "shift": sums.mass_BhT / rest_BhT}


_OF_MASS = ("target", "shift")
ROW_LOSSES = {
    "squared": RowLoss(frozenset({"squares", "distances"}), ("square", "target", "shift"), _squared),
    "log-mass": RowLoss(frozenset(), _OF_MASS, _log_mass),
    "kl": RowLoss(frozenset({"logs"}), ("direct", "shift"), _kl),
    "hinge": RowLoss(frozenset(), _OF_MASS, _hinge),
    "avoid": RowLoss(frozenset({"rest"}), _OF_MASS, _avoid),
}
"""By the name that plans and settings use; triton_kernels.py counts them in this order."""
