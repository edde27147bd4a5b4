"""Find a fixed set of n-grams in long sequences of ids, exactly.

A multilinear hash of 64 bits proposes places, and a comparison of all ids keeps the true ones. Equal
n-grams have equal hashes, so none is missed.

Shapes: n length of an n-gram, m n-grams of the set, N ids of a sequence.
"""

from __future__ import annotations

import numpy as np

_MIN_BITS, _MAX_BITS = 12, 26
_DENSE = 4


class NgramSet:
    """A set of n-grams of positive ids."""

    def __init__(self, rows_mn: np.ndarray) -> None:
        """rows_mn: int64, one different n-gram per row."""
        self.n = int(rows_mn.shape[1])
        seed = 0
        while True:
            random = np.random.default_rng(seed)
            self._factors_n = random.integers(1, 2**63, self.n, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            hashes_m = self._hash(rows_mn.astype(np.uint64).T)
            order_m = np.argsort(hashes_m, kind="stable")
            self._hashes_m = hashes_m[order_m]
            if (np.diff(self._hashes_m) != 0).all():
                break
            seed += 1  # two n-grams share a hash: a comparison with one would hide the other
        self._rows_mn, self._numbers_m = rows_mn[order_m], order_m
        bits = min(_MAX_BITS, max(_MIN_BITS, len(rows_mn).bit_length() + 4))
        self._shift = np.uint64(64 - bits)
        self._may_be = np.zeros(2**bits, bool)
        self._may_be[self._hashes_m >> self._shift] = True

    def __len__(self) -> int:
        return len(self._rows_mn)

    def find(self, ids_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where n-grams of the set begin in `ids_N` (ascending), and the number of each, as rows.

        ids_N: int64, 0 for an id that no n-gram has. An n-gram never contains a 0.
        """
        nothing = np.empty(0, np.int64)
        if len(ids_N) < self.n:
            return nothing, nothing
        unknown_N = np.concatenate([[0], np.cumsum(ids_N == 0)])
        starts = np.flatnonzero(unknown_N[self.n :] == unknown_N[: -self.n])
        if not len(starts):
            return nothing, nothing
        wide_N, count = ids_N.astype(np.uint64), len(ids_N) - self.n + 1
        if len(starts) * _DENSE > count:  # then slices of the whole are faster than a selection
            hashes = self._hash([wide_N[at : at + count] for at in range(self.n)])[starts]
        else:
            hashes = self._hash([wide_N[starts + at] for at in range(self.n)])
        kept = self._may_be[hashes >> self._shift]
        starts, hashes = starts[kept], hashes[kept]
        at = np.searchsorted(self._hashes_m, hashes)
        at[at == len(self._hashes_m)] = 0
        kept = self._hashes_m[at] == hashes
        starts, at = starts[kept], at[kept]
        windows = ids_N[starts[:, None] + np.arange(self.n)]
        kept = (windows == self._rows_mn[at]).all(1)
        return starts[kept], self._numbers_m[at[kept]]

    def _hash(self, columns: np.ndarray | list[np.ndarray]) -> np.ndarray:
        total = np.zeros_like(columns[0])
        for factor, column in zip(self._factors_n, columns, strict=True):
            total += factor * column
        return total


class NgramCollector:
    """Numbers the n-grams of many sequences, equal ones once."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._numbers: dict[bytes, int] = {}

    def add(self, ids: np.ndarray) -> np.ndarray:
        """The number of each n-gram of `ids` (int64), in order; empty for fewer than n ids."""
        raw = np.ascontiguousarray(ids, np.int64)
        count = len(raw) - self.n + 1
        numbers = (
            self._numbers.setdefault(raw[at : at + self.n].tobytes(), len(self._numbers))
            for at in range(max(0, count))
        )
        return np.fromiter(numbers, np.int64, max(0, count))

    def __len__(self) -> int:
        return len(self._numbers)

    def finish(self) -> NgramSet:
        """The set of all n-grams, by their numbers; there must be one."""
        joined = np.frombuffer(b"".join(self._numbers), np.int64)
        return NgramSet(joined.reshape(-1, self.n))
