"""Patterns: what a guided head should look at, as a function of the token ids.

A pattern never makes the matrix P of Eq. (3). It says either which *columns* every query should look at
(a token set) or at which *offset* behind the query the target lies, which is all the loss needs.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class Columns:
    """Every query's targets are the marked key positions. `marked_BT`: bool."""

    marked_BT: torch.Tensor


@dataclass(frozen=True)
class Offset:
    """The target of query p is key p - `distance` (0 is the query itself); early queries have none."""

    distance: int


Target = Columns | Offset


@runtime_checkable
class Pattern(Protocol):
    """What a head should look at."""

    @property
    def name(self) -> str:
        """Name in records and messages."""
        ...

    def target(self, ids_BT: torch.Tensor) -> Target:
        """The targets in these token ids (int64)."""
        ...


@dataclass(frozen=True)
class TokenSet:
    """Keys whose token is in a set (Eq. 3 for one token, the study's experiments for a lexicon)."""

    name: str
    token_ids: frozenset[int]
    _marks: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def target(self, ids_BT: torch.Tensor) -> Columns:
        """Marks by table look-up: one gather, whatever the size of the set."""
        marks_V = self._marks.get(ids_BT.device)
        if marks_V is None:
            marks_V = torch.zeros(max(self.token_ids, default=0) + 2, dtype=torch.bool)
            marks_V[list(self.token_ids)] = True
            self._marks[ids_BT.device] = marks_V = marks_V.to(ids_BT.device)
        # The entry after the largest id of the set is False and stands for every id beyond.
        return Columns(marks_V[ids_BT.clamp(max=marks_V.numel() - 1)])


@dataclass(frozen=True)
class FirstToken:
    """The first position of the sequence."""

    name: str = "first-token"

    def target(self, ids_BT: torch.Tensor) -> Columns:
        """Column 0 of every sequence."""
        marked_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        marked_BT[:, 0] = True
        return Columns(marked_BT)


@dataclass(frozen=True)
class FixedOffset:
    """The token `distance` positions before the query: 0 is [SELF], 1 is [PREV] of the original work."""

    distance: int

    @property
    def name(self) -> str:
        return {0: "self", 1: "previous-token"}.get(self.distance, f"offset-{self.distance}")

    def target(self, ids_BT: torch.Tensor) -> Offset:
        """The same for any ids."""
        return Offset(self.distance)
