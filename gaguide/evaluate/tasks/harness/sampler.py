"""Which documents are demonstrations: the draw of lm-evaluation-harness 0.4.13, equal for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class TooFewError(ValueError):
    """There are fewer documents than demonstrations; the argument is the number of documents."""


class Sampler(Generic[T]):
    """Draws from `pool` for one document after the other, in the order of the data.

    name: `default` makes a new draw for each document, `first_n` takes the first ones. A draw depends on all
    draws before it, so every document up to the last one that is evaluated needs its draw.
    """

    def __init__(self, name: str, pool: Sequence[T], seed: int) -> None:
        self._pool, self._is_first = list(pool), name == "first_n"
        self._random = random.Random(seed)

    def sample(self, count: int, asked: T | None) -> list[T]:
        """`count` documents, none of them equal to `asked`; raises `TooFewError`."""
        drawn = self._pool if self._is_first else self._draw(self._pool, count + bool(asked))
        chosen = [one for one in drawn if asked is None or one != asked][:count]
        if len(chosen) < count and not self._is_first:  # `asked` was drawn more than once
            chosen = self._draw([one for one in self._pool if one != asked], count)
        if len(chosen) < count:
            raise TooFewError(len(chosen))
        return chosen

    def _draw(self, pool: list[T], count: int) -> list[T]:
        if len(pool) < count:
            raise TooFewError(len(pool))
        return self._random.sample(pool, count)
