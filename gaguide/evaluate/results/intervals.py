"""Means, shares and rates over examples with 95% intervals. Pure, without torch.

Standard errors are those of lm-evaluation-harness, over examples. Where examples have groups (minimal pairs,
contrast sets), they are not independent, and the interval is that over groups, never narrower than over
examples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from gaguide.stats.groups import ROUNDING, Z, critical_value, ratio_error, sums_by_group

Groups = Sequence[Hashable] | None
"""The group of each example; None where the examples are independent."""


def clusters(ids: Sequence[str], groups: Sequence[str | None]) -> tuple[str, ...] | None:
    """The unit of each example's outcome: its group, or itself; None where no example has a group.

    A group and an example without one are never the same, whatever their names.
    """
    if all(group is None for group in groups):
        return None
    return tuple(
        f"example {one}" if group is None else f"group {group}"
        for one, group in zip(ids, groups, strict=True)
    )


@dataclass(frozen=True)
class Metric:
    """A value with its 95% interval."""

    value: float
    """The estimate."""
    stderr: float
    """Standard error over examples; NaN with a single one."""
    low: float
    """Lower end of the interval; NaN with a single example, except for proportions."""
    high: float
    """Upper end of the interval, likewise."""


NO_METRIC = Metric(math.nan, math.nan, math.nan, math.nan)
"""The metric of a task in which scores are not finite."""


def proportion(hits: Sequence[bool], groups: Groups = None) -> Metric:
    """Share of hits with Wilson's interval, for the effective number of examples.

    Where that is estimated from few groups, the interval is as wide as Student's (`critical_value`), as the
    mean's is. A single group counts as one example.

    Not statsmodels' `proportion_confint`, whose import alone would take an evaluation one second.
    """
    values = [float(hit) for hit in hits]
    share, error = sum(values) / len(values), ratio_error(values, [1] * len(values))
    n, count = len(values) / _design_effect(values, share, error, groups), len(set(groups or ()))
    z = critical_value(count) if count > 1 and 0 < share < 1 else Z
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At 0 and 1 rounding would leave the share itself outside.
    low, high = min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
    return Metric(share, error, low, high)


def mean(values: Sequence[float], groups: Groups = None) -> Metric:
    """Mean with a normal interval; Student's where there are few examples or groups (`critical_value`)."""
    return rate(values, [1] * len(values), groups)


def rate(losses: Sequence[float], tokens: Sequence[int], groups: Groups = None) -> Metric:
    """Sum of losses divided by sum of tokens; the interval linearizes the ratio over examples or groups.

    Examples without a token are left out. Where all rates are equal there is no interval, as in `t_interval`.
    """
    counted = [at for at, count in enumerate(tokens) if count]
    losses, tokens = [losses[at] for at in counted], [tokens[at] for at in counted]
    value, error = math.fsum(losses) / sum(tokens), ratio_error(losses, tokens)
    own: tuple[Sequence[float], Sequence[float]] = (losses, tokens)
    if groups is not None:
        own = sums_by_group(losses, tokens, [groups[at] for at in counted])
    wider = max(error, ratio_error(*own))
    half = math.nan if wider <= ROUNDING * abs(value) else critical_value(len(own[0])) * wider
    return Metric(value, error, value - half, value + half)


def perplexity(losses: Sequence[float], tokens: Sequence[int], groups: Groups = None) -> Metric:
    """Exponential of `rate`."""
    loss = rate(losses, tokens, groups)
    value = _exp(loss.value)
    return Metric(value, value * loss.stderr, _exp(loss.low), _exp(loss.high))


def _design_effect(values: Sequence[float], share: float, error: float, groups: Groups) -> float:
    """Design effect: examples per independent one; at least 1, and a group's size where all are equal."""
    if groups is None:
        return 1.0
    sums, counts = sums_by_group(values, [1] * len(values), groups)
    if len(sums) < 2 or share in (0.0, 1.0):
        return len(values) / len(sums)
    return max(1.0, (ratio_error(sums, counts) / error) ** 2)


def _exp(value: float) -> float:
    return math.inf if value >= 700 else math.exp(value)  # NaN of NaN
