"""Patterns: the targets of a guided head, as a function of the token ids.

A pattern never computes the matrix P of Eq. (3). It gives either the *columns* that every query should attend
to (a token set) or the *offset* of the target behind the query, which is all that the loss needs.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from gaguide.errors import UserError


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
    """The targets of a head's attention."""

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

    def prepare(self, device: torch.device) -> None:
        """Make the table for a device, which a compiler could not do while it traces `target`."""
        if device not in self._marks:
            marks_V = torch.zeros(max(self.token_ids, default=0) + 2, dtype=torch.bool)
            marks_V[list(self.token_ids)] = True
            self._marks[device] = marks_V.to(device)

    def target(self, ids_BT: torch.Tensor) -> Columns:
        """Keys in the set, by one gather from a table over the vocabulary."""
        if ids_BT.device not in self._marks:
            self.prepare(ids_BT.device)
        marks_V = self._marks[ids_BT.device]
        # The entry after the largest id of the set is False and serves every id beyond.
        return Columns(marks_V[ids_BT.clamp(max=marks_V.numel() - 1)])


@dataclass(frozen=True)
class FirstToken:
    """The first position of the sequence after padding; of each document, where attention stays inside it."""

    name: str = "first-token"
    """Name of the pattern."""

    def target(self, ids_BT: torch.Tensor) -> Columns:
        """Column 0 of every sequence; `target_under` knows padding and documents."""
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


Marks = Mapping[str, torch.Tensor]
"""By name, whether each token has a mark of the data: bool [B, T]."""
MarksOfIds = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
"""By name, a function from token ids [B, T] to the mark of each token."""
# Not a ContextVar: where activations are checkpointed, autograd's own threads repeat the forward pass of a
# layer, and have none of the context of the thread that called the model.
_marks: Marks | MarksOfIds = {}


@contextmanager
def marked(marks: Marks | MarksOfIds) -> Iterator[None]:
    """Inside, the token ids of models' calls have these marks, for patterns of `MarkedTokens`."""
    global _marks
    before, _marks = _marks, marks
    try:
        yield
    finally:
        _marks = before


@dataclass(frozen=True)
class MarkedTokens:
    """Keys that the data mark: annotated spans, the prompt of a conversation (docs/data.md).

    The marks are those of the `with marked(…)` block around the forward pass.
    """

    mark: str
    """Name of the mark."""
    within: Pattern | None = None
    """Only those of them that are targets of this pattern too; None: all."""

    @property
    def name(self) -> str:
        """`spans:MARK`, or `PATTERN@MARK`."""
        return f"spans:{self.mark}" if self.within is None else f"{self.within.name}@{self.mark}"

    def prepare(self, device: torch.device) -> None:
        """Place the tables of the other pattern on a device."""
        if self.within is not None:
            prepare_pattern(self.within, device)

    def target(self, ids_BT: torch.Tensor) -> Columns:
        """The marked keys; a `UserError` where the token ids came without this mark."""
        if self.within is not None:
            return self.restrict(self.within.target(ids_BT), ids_BT)
        return Columns(self._marked(ids_BT))

    def _marked(self, ids_BT: torch.Tensor) -> torch.Tensor:
        marked_BT = _marks.get(self.mark)
        if marked_BT is None:
            problem = "names a mark of the data, which this text lacks"
            remedy = "use it with shards that have such marks, or call the model in a `with marked(…)` block"
            raise UserError.of("guidance", problem, remedy, self.mark)
        if not isinstance(marked_BT, torch.Tensor):
            marked_BT = marked_BT(ids_BT)
        if marked_BT.shape != ids_BT.shape:
            shapes = f"{tuple(marked_BT.shape)} for token ids of {tuple(ids_BT.shape)}"
            raise ValueError(f"the mark {self.mark!r} has the shape {shapes}")
        return marked_BT

    def restrict(self, inner: Target, ids_BT: torch.Tensor) -> Columns:
        """Those targets of the other pattern that are marked."""
        # A pattern of an installed package does not show its kind of target by its name.
        if not isinstance(inner, Columns):
            assert self.within is not None
            problem = "has one target for each query, which a mark cannot restrict"
            raise UserError.of("guidance", problem, f"guide to {self.within.name} without @", self.name)
        return Columns(inner.marked_BT & self._marked(ids_BT))


def target_under(pattern: Pattern, ids_BT: torch.Tensor, mask_BQK: torch.Tensor | None) -> Target:
    """The pattern's targets under a mask, bool [B or 1, T, T], True where visible; None is causal.

    A first token is one that sees itself and nothing before it.
    """
    if mask_BQK is None or not isinstance(innermost(pattern), FirstToken):
        return pattern.target(ids_BT)
    return target_from(pattern, ids_BT, mask_BQK.diagonal(0, 1, 2) & ~mask_BQK.tril(-1).any(-1))


def target_from(pattern: Pattern, ids_BT: torch.Tensor, begins_BT: torch.Tensor | None) -> Target:
    """The pattern's targets where sequences, or documents, begin at `begins_BT`, bool [B or 1, T].

    None: each row is one sequence from its first column.
    """
    if begins_BT is None:
        return pattern.target(ids_BT)
    if isinstance(pattern, FirstToken):
        return Columns(begins_BT.expand(ids_BT.shape))
    if isinstance(pattern, MarkedTokens) and pattern.within is not None:
        return pattern.restrict(target_from(pattern.within, ids_BT, begins_BT), ids_BT)
    return pattern.target(ids_BT)


def innermost(pattern: Pattern) -> Pattern | None:
    """The pattern that marks of the data restrict, or the pattern itself; None where a mark stands alone."""
    inner: Pattern | None = pattern
    while isinstance(inner, MarkedTokens):
        inner = inner.within
    return inner


def needed_marks(pattern: Pattern) -> tuple[str, ...]:
    """Names of the data's marks that a pattern needs: `negation@scope@prompt` needs both."""
    found: list[str] = []
    inner: Pattern | None = pattern
    while isinstance(inner, MarkedTokens):
        found.append(inner.mark)
        inner = inner.within
    return tuple(found)


def prepare_pattern(pattern: Pattern, device: torch.device) -> None:
    """Place the tables of a pattern that has some on a device, before a compiler traces its `target`."""
    prepare = getattr(pattern, "prepare", None)
    if prepare is not None:
        prepare(device)
