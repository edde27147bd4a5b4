"""What a paired comparison could have shown: effect size, power and the smallest detectable difference. Pure.

Power is that of the two-sided test at `ALPHA`, before correction for several tests, for a *given* true
difference. That of the observed difference is not computed: it is a function of the p value alone (Hoenig and
Heisey 2001) and says nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from gaguide.stats.groups import ratio_error, sums_by_group
from gaguide.stats.paired import ALPHA

TARGET = 0.8
"""Power at which a difference counts as detectable."""


@dataclass(frozen=True)
class Effect:
    """The size of a difference in units of its own spread, with its 95% interval."""

    name: str
    """`cohen_g`: share of the changed examples that were gained, minus 0.5 (accuracies; −0.5 to 0.5).
    `cohen_d`: mean difference divided by the standard deviation of the differences."""
    value: float
    """The effect."""
    low: float
    """Lower end of its interval, which is over examples also where they have groups."""
    high: float
    """Upper end of its interval."""


@dataclass(frozen=True)
class Sensitivity:
    """What differences the examples of one comparison can show."""

    is_binary: bool
    """Whether outcomes are 0 or 1."""
    count: int
    """Number of examples."""
    spread: float
    """Standard deviation of the differences; for binary outcomes the share of examples that changed, by
    which McNemar's test is limited, with half an example added to either direction."""
    design: float = 1.0
    """Variance of the mean difference over groups divided by that over examples; 1 without groups."""

    def power(self, difference: float) -> float:
        """Probability that the test shows a true difference of this size, in [0, 1]."""
        size, n, z = abs(difference), self.count / self.design, _quantile(1 - ALPHA / 2)
        if not self.is_binary:
            shift = size * math.sqrt(n) / self.spread
            return float(stats.norm.cdf(shift - z) + stats.norm.cdf(-shift - z))
        # Connor (1987): variance of the number of changes under either hypothesis. A difference needs at
        # least as many changed examples.
        changed = min(1.0, max(self.spread, size))
        alternative = changed - size**2
        if alternative <= 0:
            return 1.0 if size * math.sqrt(n) > z * math.sqrt(changed) else 0.0
        return float(stats.norm.cdf((size * math.sqrt(n) - z * math.sqrt(changed)) / math.sqrt(alternative)))

    @property
    def detectable(self) -> float | None:
        """Smallest true difference that is shown with power `TARGET`; None where no difference is."""
        if not self.is_binary:
            z = _quantile(1 - ALPHA / 2) + _quantile(TARGET)
            return z * self.spread / math.sqrt(self.count / self.design)
        if self.power(1.0) < TARGET:
            return None
        return float(optimize.brentq(lambda size: self.power(size) - TARGET, 1e-9, 1.0))

    def needed(self, difference: float) -> int | None:
        """Examples of this kind that would show a true difference with power `TARGET`; None for 0."""
        if difference == 0:
            return None
        size, z, power = abs(difference), _quantile(1 - ALPHA / 2), _quantile(TARGET)
        if self.is_binary:
            changed = max(self.spread, size)
            root = (z * math.sqrt(changed) + power * math.sqrt(max(0.0, changed - size**2))) / size
        else:
            root = (z + power) * self.spread / size
        return math.ceil(self.design * root**2)


def sensitivity(
    values: Sequence[float],
    baseline: Sequence[float],
    is_binary: bool,
    groups: Sequence[Hashable] | None = None,
    weights: Sequence[float] | None = None,
) -> Sensitivity | None:
    """What the examples could show; None for fewer than two (groups), and where losses differ by a constant.

    groups, weights: as of the test (`paired_bootstrap`).
    """
    differences = np.asarray(values, float) - np.asarray(baseline, float)
    n = len(differences)
    if n < 2:
        return None
    counts = np.ones(n) if weights is None else np.asarray(weights, float)
    sums, sizes = (differences * counts).tolist(), counts.tolist()
    if groups is not None:
        sums, sizes = sums_by_group(sums, sizes, groups)
    if is_binary:
        changed = np.count_nonzero(differences)
        return Sensitivity(True, n, (changed + 1) / (n + 2), _design(differences, sums, sizes))
    deviation = float(differences.std(ddof=1))
    if deviation == 0 or len(sums) < 2:
        return None
    error = ratio_error(sums, sizes)
    return Sensitivity(False, n, deviation, (error / deviation) ** 2 * n) if error > 0 else None


def _design(differences: np.ndarray, sums: Sequence[float], sizes: Sequence[float]) -> float:
    """`Sensitivity.design` of binary outcomes, with one changed example of a group that changes as a whole
    added, so that it is known where no example changed, and not 0 where all changes cancel."""
    mean, unit = float(differences.mean()), len(differences) / len(sums)
    of_groups = math.fsum((one - mean * size) ** 2 for one, size in zip(sums, sizes, strict=True))
    return (of_groups + unit) / (float(((differences - mean) ** 2).sum()) + 1)


def seeds_detectable(differences: Sequence[float]) -> float | None:
    """Smallest true mean difference that a t-test over as many seeds shows with power `TARGET`.

    The spread between seeds is taken as observed. None for a single seed and equal differences.
    """
    n = len(differences)
    if n < 2:
        return None
    return estimate_detectable(float(np.std(differences, ddof=1)) / math.sqrt(n), n - 1)


def estimate_detectable(error: float, freedom: float) -> float | None:
    """Smallest true value that a t-test of an estimate shows with power `TARGET`; exact, by the noncentral t.

    error: the estimate's standard error, taken as known; freedom: its degrees of freedom, at least 1. None
    for an error of 0.
    """
    return None if error <= 1e-12 else error * standard_errors(freedom)


def standard_errors(freedom: float) -> float:
    """How many standard errors a true value must be from 0 for a t-test to show it with power `TARGET`."""
    bound = float(stats.t.ppf(1 - ALPHA / 2, freedom))

    def power(shift: float) -> float:
        # scipy's distribution is NaN far in its tails: beyond the bound on one side, nothing on the other.
        above, below = stats.nct.sf(bound, freedom, shift), stats.nct.cdf(-bound, freedom, shift)
        return float(np.nan_to_num(above, nan=1.0) + np.nan_to_num(below))

    return float(optimize.brentq(lambda shift: power(shift) - TARGET, 1e-6, 30.0))


def effect_size(values: Sequence[float], baseline: Sequence[float], is_binary: bool) -> Effect | None:
    """Cohen's g of binary outcomes with Clopper and Pearson's interval, else Cohen's d with a normal one.

    None where no example changed, or all changed by the same.
    """
    differences = np.asarray(values, float) - np.asarray(baseline, float)
    if is_binary:
        gained, changed = int((differences > 0).sum()), int(np.count_nonzero(differences))
        if not changed:
            return None
        ends = stats.binomtest(gained, changed).proportion_ci(1 - ALPHA)
        return Effect("cohen_g", gained / changed - 0.5, float(ends.low) - 0.5, float(ends.high) - 0.5)
    n = len(differences)
    if n < 2 or np.ptp(differences) == 0:
        return None
    value = float(differences.mean() / differences.std(ddof=1))
    half = _quantile(1 - ALPHA / 2) * math.sqrt(1 / n + value**2 / (2 * n))
    return Effect("cohen_d", value, value - half, value + half)


def _quantile(share: float) -> float:
    return float(stats.norm.ppf(share))
