"""Patterns: what a guided head should attend to, as a function of the token ids.

A pattern never computes the matrix P of Eq. (3). It gives either the *columns* that every query should attend
to (a token set) or the *offset* of the target behind the query, which is all that the loss needs.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class Columns:
    """The same key positions are targets of every query that can see them."""

    marked_BT: torch.Tensor
    """bool, True where the key is a target."""


@dataclass(frozen=True)
class Offset:
    """The target of query p is key p - `distance`; the first `distance` queries have none."""

    distance: int
    """Distance in tokens, 0 for the query itself."""


Target = Columns | Offset


@runtime_checkable
class Pattern(Protocol):
    """What a head should attend to."""

    @property
    def name(self) -> str:
        """Name of the pattern in records and messages."""
        ...

    def target(self, ids_BT: torch.Tensor) -> Target:
        """Targets in these token ids (int64)."""
        ...


@dataclass(frozen=True)
class TokenSet:
    """Keys whose token is in a set: one token in Eq. (3), a lexicon in the study's experiments."""

    name: str
    """Name of the pattern."""
    token_ids: frozenset[int]
    """The set."""
    _marks: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    def target(self, ids_BT: torch.Tensor) -> Columns:
        """Keys in the set, by one gather from a table over the vocabulary."""
        marks_V = self._marks.get(ids_BT.device)
        if marks_V is None:
            marks_V = torch.zeros(max(self.token_ids, default=0) + 2, dtype=torch.bool)
            marks_V[list(self.token_ids)] = True
            self._marks[ids_BT.device] = marks_V = marks_V.to(ids_BT.device)
        # The entry after the largest id of the set is False and serves every id beyond.
        return Columns(marks_V[ids_BT.clamp(max=marks_V.numel() - 1)])


@dataclass(frozen=True)
class FirstToken:
    """The first position of the sequence."""

    name: str = "first-token"
    """Name of the pattern."""

    def target(self, ids_BT: torch.Tensor) -> Columns:
        """Column 0 of every sequence."""
        marked_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        marked_BT[:, 0] = True
        return Columns(marked_BT)


@dataclass(frozen=True)
class FixedOffset:
    """The token `distance` positions before the query ([SELF] and [PREV] of the original work are 0 and
    1)."""

    distance: int
    """Distance in tokens, not negative."""

    @property
    def name(self) -> str:
        """`self`, `previous-token` or `offset-N`."""
        return {0: "self", 1: "previous-token"}.get(self.distance, f"offset-{self.distance}")

    def target(self, ids_BT: torch.Tensor) -> Offset:
        """The same offset for any token ids."""
        return Offset(self.distance)
