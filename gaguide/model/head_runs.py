"""Chosen heads of a layer as runs of consecutive heads, which are views of its queries and keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SMALL = 2**22
"""Numbers in a layer's queries up to which a GPU is taken to wait for its host."""
Runs = tuple[tuple[int, int], ...]
"""Consecutive heads, as (first, number); a head may be in several runs."""


@dataclass(frozen=True)
class HeadRuns:
    """The chosen heads of a layer."""

    queries: Runs
    """Joined, they are the chosen heads."""
    keys: Runs
    """Joined, they are the key heads of the chosen heads, one for each."""

    @classmethod
    def of(cls, chosen: Sequence[int], groups: int) -> HeadRuns:
        """Those of the chosen heads, ascending, of which `groups` share one key head."""
        return cls(runs_of(chosen), runs_of(head // groups for head in chosen))


def runs_of(heads: Iterable[int]) -> Runs:
    """Maximal runs of consecutive heads, in the given order."""
    found: list[tuple[int, int]] = []
    for head in heads:
        if found and head == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((head, 1))
    return tuple(found)
