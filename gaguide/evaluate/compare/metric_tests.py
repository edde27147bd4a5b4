"""One task of two evaluations: examples matched by content, every metric tested on them. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gaguide.evaluate.results.metric_names import BETTER, GROUP_ACC
from gaguide.evaluate.results.outcomes import TaskExamples
from gaguide.stats.difference import Paired
from gaguide.stats.paired import mcnemar, paired_bootstrap
from gaguide.stats.power import Effect, Sensitivity, effect_size, sensitivity

Test = Literal["mcnemar", "bootstrap"]
"""McNemar's test for outcomes that are 0 or 1, else a paired bootstrap of the mean (Student's for few)."""


@dataclass(frozen=True)
class Matched:
    """The examples that two evaluations of one task have in common."""

    now: np.ndarray
    """Their places in the one, int [examples]."""
    before: np.ndarray
    """Their places in the other, in the same order."""
    is_complete: bool
    """Whether these are all examples of both."""


@dataclass(frozen=True)
class MetricTest:
    """One metric of one task, tested on the examples of both evaluations."""

    metric: str
    """Name of the metric."""
    test: Test
    """Name of the test."""
    found: Paired
    """The difference with its interval and p value."""
    now: np.ndarray
    """Outcomes that were compared, float [examples]."""
    before: np.ndarray
    """The baseline's, in the same order."""
    places: np.ndarray
    """Their places in the evaluation, int [examples]."""
    baseline_places: np.ndarray
    """Their places in the baseline."""
    left_out: int
    """Examples that are left out because a score is not finite; for `group_acc` groups, also those of which
    the other side was not asked every example."""
    groups: tuple[str, ...] | None = None
    """Group of each example that was compared; None without groups."""
    weights: np.ndarray | None = None
    """Weight of each example, float [examples]; None where all count the same."""

    @property
    def value(self) -> float:
        """The evaluation's mean over these examples."""
        return float(np.average(self.now, weights=self.weights))

    @property
    def baseline_value(self) -> float:
        """The baseline's mean over these examples."""
        return float(np.average(self.before, weights=self.weights))

    @property
    def sensitivity(self) -> Sensitivity | None:
        """The differences that these examples can show; None where they say nothing about it."""
        weights = None if self.weights is None else self.weights.tolist()
        is_binary = self.test == "mcnemar"
        return sensitivity(self.now.tolist(), self.before.tolist(), is_binary, self.groups, weights)

    @property
    def effect(self) -> Effect | None:
        """Size of the difference in units of its spread; None where nothing changed, or all by the same."""
        return effect_size(self.now.tolist(), self.before.tolist(), self.test == "mcnemar")


def match(now: Sequence[str], before: Sequence[str]) -> Matched:
    """Pairs of equal keys, in the order of `before`; equal keys of one side keep their order."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(now):
        places[key].append(place)
    taken: Counter[str] = Counter()
    pairs = []
    for place, key in enumerate(before):
        if taken[key] < len(places[key]):
            pairs.append((places[key][taken[key]], place))
            taken[key] += 1
    first, second = np.asarray(pairs, int).reshape(-1, 2).T
    return Matched(first, second, len(pairs) == len(now) == len(before))


def metric_tests(now: TaskExamples, before: TaskExamples, matched: Matched) -> Iterator[MetricTest]:
    """A test of every metric that both have, on the matched examples with finite scores.

    Examples of one group are tested as one unit, and the share of groups with all answers right is tested
    over groups. A metric without a finite pair of scores is left out, and one of `other_units`.
    """
    groups, apart = _groups(now, before, matched), other_units(now, before, matched)
    for metric in (name for name in now.outcomes if name in before.outcomes):
        a, b = before.outcomes[metric][matched.before], now.outcomes[metric][matched.now]
        known = np.isfinite(a) & np.isfinite(b)
        if not known.any() or metric in apart:
            continue
        weights = now.weights.get(metric)
        places, others = matched.now[known], matched.before[known]
        found = MetricTest(
            metric,
            "mcnemar" if _is_binary(metric, a[known]) and _is_binary(metric, b[known]) else "bootstrap",
            _NOT_TESTED, b[known], a[known], places, others, int((~known).sum()),
            None if groups is None else tuple(groups[known]),
            None if weights is None or np.ptp(weights[places]) == 0 else weights[places],
        )  # fmt: skip
        yield replace(found, found=_test(found))
        if metric == "acc" and groups is not None and found.test == "mcnemar":
            cut = _cut_groups(now, matched.now) | _cut_groups(before, matched.before)
            whole = _whole_groups(a, b, groups, known & ~np.isin(groups.astype(str), list(cut)), matched)
            if len(whole.now):
                yield whole


def other_units(now: TaskExamples, before: TaskExamples, matched: Matched) -> list[str]:
    """Metrics of both whose units differ: losses per token of two tokenizers cannot be paired."""
    found = []
    for metric in (name for name in now.weights if name in now.outcomes and name in before.weights):
        a, b = before.outcomes[metric][matched.before], now.outcomes[metric][matched.now]
        known = np.isfinite(a) & np.isfinite(b)
        counts = before.weights[metric][matched.before][known], now.weights[metric][matched.now][known]
        found += [] if np.array_equal(*counts) else [metric]
    return found


_NOT_TESTED = Paired(math.nan, None, None, None)


def _test(one: MetricTest) -> Paired:
    if one.test == "mcnemar":
        return mcnemar((one.now > 0).tolist(), (one.before > 0).tolist(), one.groups)
    weights = None if one.weights is None else one.weights.tolist()
    return paired_bootstrap(one.now.tolist(), one.before.tolist(), groups=one.groups, weights=weights)


def _groups(now: TaskExamples, before: TaskExamples, matched: Matched) -> np.ndarray | None:
    """The group of each matched example, from whichever side has groups."""
    for examples, places in ((now, matched.now), (before, matched.before)):
        if examples.groups is not None:
            return np.asarray(examples.groups, object)[places]
    return None


def _cut_groups(examples: TaskExamples, matched: np.ndarray) -> set[str]:
    """Groups with an example that the other side was not asked: whether all is right there is not known."""
    rest = set(range(len(examples.ids))) - set(matched.tolist())
    return set() if examples.groups is None else {examples.groups[at] for at in rest}


def _whole_groups(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray, known: np.ndarray, matched: Matched
) -> MetricTest:
    """`group_acc`: whether all answers of a group are right; groups with one not in `known` are left out."""
    names, first, index = np.unique(groups.astype(str), return_index=True, return_inverse=True)
    size = len(names)
    right_a, right_b = (np.bincount(index[values <= 0], minlength=size) == 0 for values in (a, b))
    kept = np.bincount(index[~known], minlength=size) == 0
    now, before, places = right_b[kept].astype(float), right_a[kept].astype(float), first[kept]
    found = mcnemar((now > 0).tolist(), (before > 0).tolist()) if len(now) else _NOT_TESTED
    return MetricTest(
        GROUP_ACC, "mcnemar", found, now, before, matched.now[places], matched.before[places],
        int((~kept).sum()),
    )  # fmt: skip


def _is_binary(metric: str, outcomes: np.ndarray) -> bool:
    """Whether every outcome is 0 or 1, as right or wrong is; losses never count as binary."""
    return BETTER.get(metric) != "low" and bool(np.isin(outcomes, (0.0, 1.0)).all())
