"""How the chosen answers agree with the right ones beyond their share: balanced accuracy, MCC, calibration.

A label is what a class means: its text where every example offers the same texts (then their order does not
matter), else its position. Pure, without torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from gaguide.evaluate.results.intervals import Groups, Metric, mean
from gaguide.stats.groups import ROUNDING, critical_value, tail_share

CALIBRATION_BINS = 15
"""Bins of equal width over the probability of the chosen class (Guo et al. 2017)."""
_RESAMPLES = 400
_CHUNK = 50

Pair = tuple[Hashable, Hashable]
"""(right label, chosen label)."""


def balanced_accuracy(pairs: Sequence[Pair], groups: Groups = None) -> Metric:
    """Mean over the labels of the share of their examples that are answered right; jackknife interval.

    0.5 for a constant answer to two labels, however many examples each has.
    """
    return _jackknifed(_balanced, pairs, groups)


def matthews(pairs: Sequence[Pair], groups: Groups = None) -> Metric:
    """Matthews' correlation of right and chosen labels (Gorodkin's for more than two); jackknife interval.

    0 for a constant answer, as scikit-learn defines it where it is undefined.
    """
    return _jackknifed(matthews_of_counts, pairs, groups)


def brier(
    probabilities: Sequence[Sequence[float]], answers: Sequence[Sequence[int]], groups: Groups = None
) -> Metric:
    """Mean over examples of the squared distance of the classes' probabilities from the answer; 0 to 2.

    answers: the right classes of each example, which share the answer's probability of 1 equally.
    """
    return mean(
        [
            math.fsum((p - (at in right) / len(right)) ** 2 for at, p in enumerate(own))
            for own, right in zip(probabilities, answers, strict=True)
        ],
        groups,
    )


def calibration_error(confidences: Sequence[float], hits: Sequence[bool], groups: Groups = None) -> Metric:
    """Expected calibration error: |confidence − accuracy| of each bin, weighted by its examples.

    confidences: probability of the chosen class. The error of few examples is too large, because noise in a
    bin counts as error; resampling adds as much again. So the lower end is that of the basic bootstrap over
    examples or groups, which subtracts this, and the upper end that of the percentiles. For a calibrated
    model it contains 0 in 60% of cases, where the percentiles never do.
    """
    sums_BG, sizes_G = _differences_by_bin(confidences, hits, groups)
    value = float(np.abs(sums_BG.sum(1)).sum() / sizes_G.sum())
    count = len(sizes_G)
    if count < 2:
        return Metric(value, math.nan, math.nan, math.nan)
    rng, found = np.random.default_rng(0), []
    for _ in range(_RESAMPLES // _CHUNK):
        drawn_RG = rng.multinomial(count, np.full(count, 1 / count), size=_CHUNK).astype(float)
        # Not `@`, whose last digit depends on the number of threads: one number of ranks would not give
        # another's results to the last bit.
        errors_RB = np.einsum("rg,bg->rb", drawn_RG, sums_BG)
        found.append(np.abs(errors_RB).sum(1) / np.einsum("rg,g->r", drawn_RG, sizes_G))
    drawn = np.concatenate(found)
    share = tail_share(count)
    low, high = np.quantile(drawn, (share, 1 - share))
    low = min(low, max(0.0, 2 * value - high))
    return Metric(value, float(drawn.std(ddof=1)), min(value, float(low)), max(value, float(high)))


def _differences_by_bin(
    confidences: Sequence[float], hits: Sequence[bool], groups: Groups
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of confidence − hit [bins, groups], and examples of each group."""
    places: dict[Hashable, int] = {}
    keys: Sequence[Hashable] = range(len(hits)) if groups is None else groups
    index = [places.setdefault(key, len(places)) for key in keys]
    sums_BG = np.zeros((CALIBRATION_BINS, len(places)))
    sizes_G = np.zeros(len(places))
    for confidence, hit, group in zip(confidences, hits, index, strict=True):
        where = min(CALIBRATION_BINS - 1, int(confidence * CALIBRATION_BINS))
        sums_BG[where, group] += confidence - hit
        sizes_G[group] += 1
    return sums_BG, sizes_G


def _balanced(counts: Mapping[Pair, int]) -> float:
    right, total = Counter[Hashable](), Counter[Hashable]()
    for (answer, chosen), count in counts.items():
        total[answer] += count
        right[answer] += count * (answer == chosen)
    shares = [right[label] / count for label, count in total.items() if count]
    return sum(shares) / len(shares)


def matthews_of_counts(counts: Mapping[Pair, int]) -> float:
    """Matthews' correlation of (right label, chosen label) → count; 0 where one side is constant."""
    answers, choices = Counter[Hashable](), Counter[Hashable]()
    for (answer, chosen), count in counts.items():
        answers[answer] += count
        choices[chosen] += count
    n, right = sum(answers.values()), sum(count for pair, count in counts.items() if pair[0] == pair[1])
    covariance = right * n - sum(count * choices[label] for label, count in answers.items())
    spread = (n * n - sum(count**2 for count in answers.values())) * (
        n * n - sum(count**2 for count in choices.values())
    )
    return covariance / math.sqrt(spread) if spread else 0.0


def _jackknifed(
    statistic: Callable[[Mapping[Pair, int]], float], pairs: Sequence[Pair], groups: Groups
) -> Metric:
    """`statistic` of the counts of pairs, with the jackknife's standard error over examples and interval over
    groups; no interval where the statistic is the same without any of them.
    """
    counts = Counter(pairs)
    value = statistic(counts)
    alone = Counter(frozenset({pair: 1}.items()) for pair in pairs)
    error = _jackknife_error(statistic, counts, alone)
    wider, units = error, len(pairs)
    if groups is not None:
        whole: dict[Hashable, Counter[Pair]] = {}
        for pair, group in zip(pairs, groups, strict=True):
            whole.setdefault(group, Counter())[pair] += 1
        parts = Counter(frozenset(own.items()) for own in whole.values())
        wider, units = max(error, _jackknife_error(statistic, counts, parts)), len(whole)
    if wider <= ROUNDING:  # as for a constant answer: no spread here says nothing about other examples
        return Metric(value, error, math.nan, math.nan)
    half = critical_value(units) * wider
    return Metric(value, error, value - half, value + half)


def _jackknife_error(
    statistic: Callable[[Mapping[Pair, int]], float],
    counts: Counter[Pair],
    parts: Mapping[frozenset[tuple[Pair, int]], int],
) -> float:
    """Jackknife error of the statistic; `parts` counts equal parts, which are computed once."""
    number = sum(parts.values())
    if number < 2:
        return math.nan
    without = [(statistic(counts - Counter(dict(part))), times) for part, times in parts.items()]
    average = math.fsum(value * times for value, times in without) / number
    squares = math.fsum((value - average) ** 2 * times for value, times in without)
    return math.sqrt(squares * (number - 1) / number)
