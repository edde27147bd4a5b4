"""Intervals and paired tests, by scipy. Pure.

Two models answer the same examples, so they are compared on each of them: correct answers by McNemar's test,
losses by a paired bootstrap (few by a t-test), means over seeds by a paired t-test. Examples of one group (a
contrast set, a minimal pair) are not independent, so these tests take groups as the unit. All intervals are
at 95%.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from gaguide.stats.difference import Paired
from gaguide.stats.groups import ALPHA, FEW, ROUNDING, Z, ratio_error, sums_by_group

RESAMPLES = 4_999
_FEW = 10
"""Least number of resampled means beyond 0 at which their share is used as a p value."""


def mcnemar(
    correct: Sequence[bool], baseline: Sequence[bool], groups: Sequence[Hashable] | None = None
) -> Paired:
    """McNemar's test on the examples that only one of the two answers correctly.

    `p_exact`: share of all ways of swapping the two models' answers (in single examples or whole groups) that
    give at least as large a difference. `p`: mid-p value (Fagerland, Lydersen and Laake 2013), which keeps
    the level and loses less power. Interval: Agresti and Min (2005) add half an example, or half a group of
    average size, to each cell of the table; with groups, the variance is that of a ratio of sums. Written out
    because statsmodels has only the exact test without groups.
    """
    now, before = np.asarray(correct, bool), np.asarray(baseline, bool)
    helped, hurt = int((now & ~before).sum()), int((~now & before).sum())
    changes = now.astype(float) - before
    moved, sizes = _units(changes, np.ones(len(now)), groups)
    n, count = len(now), len(moved)
    at_least, exactly = _swapped(moved.astype(int))
    unit = n / count  # examples of an average group
    centre = float(moved.sum()) / unit / (count + 2)
    spread = float((((moved - centre * sizes) / unit) ** 2).sum()) + 1 + 2 * centre**2
    half = Z * math.sqrt(spread) / (count + 2)
    return Paired(
        (helped - hurt) / n, max(-1.0, centre - half), min(1.0, centre + half),
        at_least if helped == hurt else at_least - exactly / 2, at_least, helped, hurt,
        count if count < n else None,
    )  # fmt: skip


def _swapped(moved: np.ndarray) -> tuple[float, float]:
    """P(|T| ≥ |t|) and P(|T| = |t|) of T = Σ ± moved with equally likely signs; t = Σ moved. Exact."""
    steps, observed = np.abs(moved[moved != 0]), abs(int(moved.sum()))
    if not observed:
        return 1.0, 1.0
    if (steps == 1).all():
        more = (len(steps) + observed) // 2
        tail, point = stats.binom.sf(more - 1, len(steps), 0.5), stats.binom.pmf(more, len(steps), 0.5)
        return min(1.0, 2 * float(tail)), 2 * float(point)
    largest = int(steps.sum())
    chances = np.zeros(2 * largest + 1)  # of every sum from -largest to largest
    chances[largest] = 1.0
    for step in steps.tolist():
        down, up = np.roll(chances, -step), np.roll(chances, step)  # the ends are still 0: nothing wraps
        chances = (down + up) / 2
    return min(1.0, 2 * float(chances[largest + observed :].sum())), 2 * float(chances[largest + observed])


def paired_bootstrap(
    values: Sequence[float],
    baseline: Sequence[float],
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
    weights: Sequence[float] | None = None,
) -> Paired:
    """The mean difference with a percentile interval over resampled examples or groups, by scipy's bootstrap;
    with fewer than `FEW` of them Student's interval and p of `rate_change`.

    weights: of each example in the mean, such as its tokens; examples of weight 0 are left out.

    p, which scipy does not give, is twice the smaller share of resampled means on one side of 0, counting the
    observed mean. Its smallest step is 2 / 5,000, which a correction over a hundred comparisons lifts above
    0.05; if fewer than ten means lie beyond 0, p is that of `rate_change`, which has no smallest value. Fewer
    than two examples (groups) have neither interval nor p; equal differences are treated as in `over_seeds`.
    Raises `ValueError` for numbers that are not finite, which the caller leaves out and reports, and if no
    weight is positive.
    """
    differences = _finite(np.asarray(values, float) - np.asarray(baseline, float))
    counts = np.ones(len(differences)) if weights is None else np.asarray(weights, float)
    if not (counts > 0).any():
        raise ValueError("no weight is positive")
    if (counts <= 0).any():
        kept = counts > 0
        differences, counts = differences[kept], counts[kept]
        groups = (
            None if groups is None else [one for one, is_kept in zip(groups, kept, strict=True) if is_kept]
        )
    sums, sizes = _units(differences * counts, counts, groups)
    is_grouped, is_mean = len(sums) < len(differences), np.ptp(counts) == 0
    mean = float(differences.mean()) if is_mean else float(sums.sum() / sizes.sum())
    units = len(sums) if is_grouped else None
    if len(sums) < 2 or all_equal(differences):
        return Paired(mean, None, None, _equal_p(mean, len(sums)), groups=units)
    student = rate_change(sums.tolist(), sizes.tolist())
    if len(sums) < FEW:
        return replace(student, difference=mean, groups=units)
    is_ratio = is_grouped or not is_mean
    found = stats.bootstrap(
        (sums, sizes) if is_ratio else (differences,),
        (lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis)) if is_ratio else np.mean,
        paired=is_ratio, n_resamples=RESAMPLES, method="percentile", vectorized=True,
        rng=np.random.default_rng(seed), batch=max(1, 4_000_000 // len(sums)),
    )  # fmt: skip
    ends, means = found.confidence_interval, found.bootstrap_distribution
    beyond = min(1 + int((means <= 0).sum()), 1 + int((means >= 0).sum()))
    p: float | None = min(1.0, 2 * beyond / (len(means) + 1))
    if beyond < _FEW:
        p = student.p
    return Paired(mean, float(ends.low), float(ends.high), p, groups=units)


def rate_change(
    differences: Sequence[float], counts: Sequence[float], groups: Sequence[Hashable] | None = None
) -> Paired:
    """A sum of differences divided by a sum of counts, with Student's interval and t-test of the linearised
    ratio over pairs, or over groups of them.

    Its p value has no smallest step, unlike a bootstrap's, so that it can be corrected over hundreds of
    heads. Pairs with count 0 are left out. Fewer than two pairs (groups) have neither interval nor p; equal
    rates are treated as in `over_seeds`. Raises `ValueError` if no count is positive.
    """
    sums, sizes = _units(_finite(np.asarray(differences, float)), np.asarray(counts, float), groups)
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    if not len(sizes):
        raise ValueError("no count is positive")
    n, rate = len(sums), float(sums.sum() / sizes.sum())
    if n < 2 or all_equal(sums / sizes):
        return Paired(rate, None, None, _equal_p(rate, n))
    error = ratio_error(sums.tolist(), sizes.tolist())
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * error
    return Paired(rate, rate - half, rate + half, 2 * float(stats.t.sf(abs(rate) / error, n - 1)))


def all_equal(values: np.ndarray) -> bool:
    """Whether `values` have no spread beyond rounding."""
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


def _equal_p(difference: float, count: int) -> float | None:
    """p of `count` equal differences by the exact sign-flip test, 2 / 2^count: the share of all choices of
    signs with a sum as large. At least 0.25 for three seeds; 1 for differences of 0; None for fewer than
    two."""
    if count < 2:
        return None
    return 1.0 if abs(difference) <= ROUNDING else 2.0 ** (1 - count)


def _units(
    values: np.ndarray, counts: np.ndarray, groups: Sequence[Hashable] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Values and counts of the independent units: sums over each group, or single examples without groups."""
    if groups is None:
        return values, counts
    sums, sizes = sums_by_group(values.tolist(), counts.tolist(), groups)
    return np.asarray(sums), np.asarray(sizes)


def over_seeds(differences: Sequence[float]) -> Paired:
    """The mean over seeds with Student's interval and a one-sample t-test against 0.

    Both are None for a single seed. If all differences are equal, the t-test is undefined: there is no
    interval, and p is that of the exact sign-flip test (`_equal_p`).
    """
    mean = float(np.mean(_finite(np.asarray(differences, float))))
    interval = t_interval(differences)
    if interval is None:
        return Paired(mean, None, None, _equal_p(mean, len(differences)))
    return Paired(mean, *interval, float(stats.ttest_1samp(differences, 0.0).pvalue))


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95% interval of the mean; None for a single value, and for equal values.

    Accuracies of few examples can be equal by chance: a spread of zero says nothing about the next seed.
    """
    if len(_finite(np.asarray(values, float))) < 2 or np.ptp(values) <= ROUNDING:
        return None
    low, high = stats.t.interval(1 - ALPHA, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return float(low), float(high)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction over the p values that are not None, in their order.

    Written out because statsmodels' multipletests collects garbage at every call: 0.2 s with torch loaded.
    """
    known = [index for index, p in enumerate(p_values) if p is not None]
    ascending = sorted(known, key=lambda index: p_values[index] or 0.0)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(ascending):
        highest = max(highest, min(1.0, (len(known) - rank) * (p_values[index] or 0.0)))
        corrected[index] = highest
    return corrected


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} numbers are not finite")
    return values
