"""Documents on their way between shards and other formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Document:
    """One document as ids."""

    ids: np.ndarray
    """Token ids [n] of any integer dtype."""
    marks: np.ndarray | None = None
    """Marks of each token [n] uint8; None where a folder has none."""


def split_at(pieces: Iterable[np.ndarray], separator: int, at_start: bool = False) -> Iterator[np.ndarray]:
    """The documents of a stream of ids that comes in pieces: each ends with `separator`.

    at_start: each begins with it instead. A rest without one is a document too.
    """
    open_pieces: list[np.ndarray] = []
    for piece in pieces:
        cuts = np.flatnonzero(piece == separator) + (not at_start)
        start = 0
        for cut in cuts.tolist():
            whole = [*open_pieces, piece[start:cut]]
            if any(map(len, whole)):
                yield whole[0] if len(whole) == 1 else np.concatenate(whole)
            open_pieces, start = [], cut
        if start < len(piece):
            open_pieces.append(piece[start:])
    if open_pieces:
        yield np.concatenate(open_pieces)
