"""Sums over groups of examples, and the error of a ratio of such sums. Pure, without numpy."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence


def sums_by_group(
    values: Sequence[float], counts: Sequence[float], groups: Sequence[Hashable]
) -> tuple[list[float], list[float]]:
    """Sums of the values and of the counts of each group, in the order of the groups' first members."""
    if len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups of {len(values)} examples")
    sums: dict[Hashable, list[float]] = {}
    sizes: dict[Hashable, list[float]] = {}
    for value, count, group in zip(values, counts, groups, strict=True):
        sums.setdefault(group, []).append(value)
        sizes.setdefault(group, []).append(count)
    return [math.fsum(some) for some in sums.values()], [math.fsum(some) for some in sizes.values()]


def ratio_error(sums: Sequence[float], counts: Sequence[float]) -> float:
    """Standard error of Σ sums / Σ counts over independent (sum, count); NaN for a single one."""
    n, total = len(sums), math.fsum(counts)
    if n < 2:
        return math.nan
    value = math.fsum(sums) / total
    squares = math.fsum((one - value * count) ** 2 for one, count in zip(sums, counts, strict=True))
    return math.sqrt(squares / (n - 1) / n) / (total / n)
