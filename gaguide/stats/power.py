"""Power of a paired comparison: effect size, power and the smallest detectable difference. Pure.

Power is that of the two-sided test at `ALPHA`, before correction for several tests, for a *given* true
difference: McNemar's by its normal approximation (Connor 1987) or, with few examples, exactly; for losses,
like the test, normal or, with few examples or groups, Student's. Power for the observed difference is not
computed: it is a function of the p value alone (Hoenig and Heisey 2001) and says nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, special, stats

from gaguide.stats.groups import ALPHA, FEW, ROUNDING, ratio_error, sums_by_group
from gaguide.stats.paired import all_equal

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
    """Differences that the examples of one comparison can show, by their test."""

    is_binary: bool
    """Whether outcomes are 0 or 1."""
    count: int
    """Number of examples."""
    spread: float
    """Standard deviation of the differences; for binary outcomes the share of examples that changed, by
    which McNemar's test is limited, with half an example added to either direction."""
    design: float = 1.0
    """Variance of the mean difference over groups divided by that over examples; 1 without groups."""
    units: int | None = None
    """Independent units: groups; None where every example is one. Of losses, fewer than `FEW` are tested by
    Student's t."""

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the test of losses; infinite where it is as wide as the normal one."""
        units = self.count if self.units is None else self.units
        return units - 1 if units < FEW else math.inf

    def power(self, difference: float, alpha: float = ALPHA) -> float:
        """Probability that the test at level `alpha` shows a true difference of this size, in [0, 1]."""
        size, n = abs(difference), self.count / self.design
        if not self.is_binary:
            return _power(size * math.sqrt(n) / self.spread, self.freedom, alpha)
        # A difference needs at least as many changed examples.
        z, changed = _quantile(1 - alpha / 2), min(1.0, max(self.spread, size))
        if n < FEW:
            return _mcnemar_power(max(1, round(n)), changed, size, alpha)
        # Connor (1987): variance of the number of changes under either hypothesis.
        alternative = changed - size**2
        if alternative <= 0:
            return 1.0 if size * math.sqrt(n) > z * math.sqrt(changed) else 0.0
        return float(stats.norm.cdf((size * math.sqrt(n) - z * math.sqrt(changed)) / math.sqrt(alternative)))

    @property
    def detectable(self) -> float | None:
        """Smallest true difference that is shown with power `TARGET`; None where no difference is."""
        return self.smallest(ALPHA)

    def smallest(self, alpha: float) -> float | None:
        """The same of the test at level `alpha`."""
        if not self.is_binary:
            error = self.spread / math.sqrt(self.count / self.design)
            return error * standard_errors(self.freedom, alpha) if self.freedom >= 1 else None
        if self.power(1.0, alpha) < TARGET:
            return None
        return float(optimize.brentq(lambda size: self.power(size, alpha) - TARGET, 1e-9, 1.0))

    def needed(self, difference: float) -> int | None:
        """Examples of this kind that would show a true difference with power `TARGET`; None for 0."""
        if difference == 0:
            return None
        size, z, power = abs(difference), _quantile(1 - ALPHA / 2), _quantile(TARGET)
        if self.is_binary:
            changed = max(self.spread, size)
            root = (z * math.sqrt(changed) + power * math.sqrt(max(0.0, changed - size**2))) / size
            few = math.ceil(root**2)
            while few < FEW and _mcnemar_power(few, changed, size, ALPHA) < TARGET:
                few += 1
            return math.ceil(self.design * max(few, root**2))
        members = 1.0 if self.units is None else self.count / self.units
        variance = self.design * (self.spread / size) ** 2
        # Student's test of few units needs more than the normal one.
        units = max(2, math.ceil(variance * (z + power) ** 2 / members))
        while units < FEW and _power(math.sqrt(units * members / variance), units - 1) < TARGET:
            units += 1
        return max(math.ceil(variance * (z + power) ** 2), math.ceil(units * members))


def sensitivity(
    values: Sequence[float],
    baseline: Sequence[float],
    is_binary: bool,
    groups: Sequence[Hashable] | None = None,
    weights: Sequence[float] | None = None,
) -> Sensitivity | None:
    """Power of the examples; None for fewer than two (groups), and where losses differ by a constant.

    groups, weights: as in the test (`paired_bootstrap`), which leaves out examples of weight 0.
    """
    differences = np.asarray(values, float) - np.asarray(baseline, float)
    counts = np.ones(len(differences)) if weights is None else np.asarray(weights, float)
    if (counts <= 0).any():
        kept = np.flatnonzero(counts > 0).tolist()
        differences, counts = differences[kept], counts[kept]
        groups = None if groups is None else [groups[at] for at in kept]
    n = len(differences)
    if n < 2:
        return None
    sums, sizes = (differences * counts).tolist(), counts.tolist()
    if groups is not None:
        sums, sizes = sums_by_group(sums, sizes, groups)
    if is_binary:
        changed = np.count_nonzero(differences)
        units = None if groups is None else len(sums)
        return Sensitivity(True, n, (changed + 1) / (n + 2), _design(differences, sums, sizes), units)
    deviation = float(differences.std(ddof=1))
    if all_equal(differences) or len(sums) < 2:
        return None
    error = ratio_error(sums, sizes)
    units = None if groups is None else len(sums)
    return Sensitivity(False, n, deviation, (error / deviation) ** 2 * n, units) if error > 0 else None


def _design(differences: np.ndarray, sums: Sequence[float], sizes: Sequence[float]) -> float:
    """`Sensitivity.design` of binary outcomes, with one changed example of a group that changes as a whole
    added, so that it is known where no example changed, and not 0 where all changes cancel."""
    mean, unit = float(differences.mean()), len(differences) / len(sums)
    of_groups = math.fsum((one - mean * size) ** 2 for one, size in zip(sums, sizes, strict=True))
    return (of_groups + unit) / (float(((differences - mean) ** 2).sum()) + 1)


def seeds_detectable(differences: Sequence[float], alpha: float = ALPHA) -> float | None:
    """Smallest true mean difference that a t-test over this number of seeds shows with power `TARGET`.

    The spread between seeds is taken as observed. None for a single seed and equal differences.
    """
    n = len(differences)
    if n < 2:
        return None
    return estimate_detectable(float(np.std(differences, ddof=1)) / math.sqrt(n), n - 1, alpha)


def estimate_detectable(error: float, freedom: float, alpha: float = ALPHA) -> float | None:
    """Smallest true value that a t-test of an estimate shows with power `TARGET`; exact, by the noncentral t.

    error: the estimate's standard error, taken as known; freedom: its degrees of freedom, at least 1. None
    for an error of 0.
    """
    return None if error <= ROUNDING else error * standard_errors(freedom, alpha)


@cache
def standard_errors(freedom: float, alpha: float = ALPHA) -> float:
    """Standard errors from 0 of a true value that a t-test at level `alpha` shows with power `TARGET`;
    infinite `freedom` is the normal test's."""
    most = 2 * float(stats.t.ppf(1 - alpha / 2, freedom)) + 10
    return float(optimize.brentq(lambda shift: _power(shift, freedom, alpha) - TARGET, 1e-6, most))


def _power(shift: float, freedom: float, alpha: float = ALPHA) -> float:
    """Power of the two-sided t-test of a true value `shift` standard errors from 0, by the noncentral t."""
    if math.isinf(freedom):
        z = _quantile(1 - alpha / 2)
        return float(stats.norm.cdf(shift - z) + stats.norm.cdf(-shift - z))
    bound = float(stats.t.ppf(1 - alpha / 2, freedom))
    # scipy's distribution is NaN far in its tails: beyond the bound on one side, nothing on the other.
    above, below = stats.nct.sf(bound, freedom, shift), stats.nct.cdf(-bound, freedom, shift)
    return float(np.nan_to_num(above, nan=1.0) + np.nan_to_num(below))


def _mcnemar_power(count: int, changed: float, size: float, alpha: float) -> float:
    """Exact power of McNemar's mid-p test of `count` examples, a share `changed` of which change, for a true
    difference `size`: over the numbers of changed and of gained examples."""
    numbers, needed = np.arange(count + 1), _gained_needed(count, alpha)
    gained = (changed + size) / (2 * changed)
    shown = stats.binom.sf(needed - 1, numbers, gained) + stats.binom.cdf(numbers - needed, numbers, gained)
    return float(stats.binom.pmf(numbers, count, changed) @ shown)


@cache
def _gained_needed(count: int, alpha: float) -> np.ndarray:
    """For each number of changed examples up to `count`, how many must be gained, or lost, for a mid-p below
    `alpha`; a larger number than that where none suffices. int [count + 1]."""
    needed = np.arange(1, count + 2)
    for changed in range(1, count + 1):
        gained = np.arange(changed // 2 + 1, changed + 1)
        p = 2 * stats.binom.sf(gained - 1, changed, 0.5) - stats.binom.pmf(gained, changed, 0.5)
        if (p < alpha).any():
            needed[changed] = gained[int(np.argmax(p < alpha))]
    return needed


def effect_size(values: Sequence[float], baseline: Sequence[float], is_binary: bool) -> Effect | None:
    """Cohen's g of binary outcomes with Clopper and Pearson's interval, else Cohen's d with that of the
    noncentral t, which leaves out 0 where the t-test rejects it.

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
    if n < 2 or all_equal(differences):
        return None
    value = float(differences.mean() / differences.std(ddof=1))
    if n >= FEW:
        half = _quantile(1 - ALPHA / 2) * math.sqrt(1 / n + value**2 / (2 * n))
        return Effect("cohen_d", value, value - half, value + half)
    root = math.sqrt(n)
    low, high = (float(special.nctdtrinc(n - 1, p, value * root)) for p in (1 - ALPHA / 2, ALPHA / 2))
    return Effect("cohen_d", value, low / root, high / root)


def _quantile(share: float) -> float:
    return float(stats.norm.ppf(share))
