"""How each task's score moves with size, from the evaluated cells. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gaguide.evaluate.results.metric_names import BETTER
from gaguide.evaluate.results.outcomes import TaskExamples
from gaguide.grouping import grouped
from gaguide.study.compare import count_constant, family_of
from gaguide.study.evaluated import HELD_OUT_METRIC, Evaluated
from gaguide.study.left_out import count_left_out
from gaguide.study.records import HELD_OUT, LeftOut, ScalingVerdict
from gaguide.study.scaling import Trend, decide, fit_trend


def verdicts(cells: Sequence[Evaluated], left: Sequence[LeftOut] = ()) -> Iterator[ScalingVerdict]:
    """How each task's score moves with size in each experiment, for metrics with a better direction.

    `left`: rows that were left out of `cells`; they are only counted.
    """
    for group in grouped((one.cell.experiment, one) for one in cells).values():
        evaluated = sorted(group, key=lambda one: one.parameters)
        for keys in grouped((family_of(*key, evaluated), key) for key in _scored(evaluated)).values():
            yield from _family_verdicts(evaluated, keys, left)


def _scored(evaluated: Sequence[Evaluated]) -> list[tuple[str, str]]:
    """(task, metric) with outcomes of examples in some cell, and held-out loss where some cell has it."""
    keys = [
        (task, metric)
        for one in evaluated
        for task, examples in one.examples.items()
        for metric in examples.outcomes
        if metric in BETTER
    ]
    found = [key for key in dict.fromkeys(keys) if _cells_with(evaluated, *key)]
    if _cells_with(evaluated, HELD_OUT, HELD_OUT_METRIC):
        found.append((HELD_OUT, HELD_OUT_METRIC))
    return found


def _cells_with(evaluated: Sequence[Evaluated], task: str, metric: str) -> list[tuple[Evaluated, float]]:
    """The cells that have a value of a metric, with it."""
    values = [(one, one.value(task, metric)) for one in evaluated]
    return [(one, value) for one, value in values if value is not None]


@dataclass(frozen=True)
class _Scores:
    """The cells that have a value of one metric of a task, smallest first."""

    known: list[tuple[Evaluated, float]]
    """(cell, value)."""
    unit: Literal["seeds", "examples"]
    """Unit of observation."""
    seeds: int
    """Smallest number of cells of a size."""

    @property
    def sizes(self) -> dict[str, int]:
        """Size → parameters."""
        return {one.cell.size: one.parameters for one, _ in self.known}

    @property
    def means(self) -> list[float]:
        """Mean value of each size."""
        return [
            float(np.mean([value for one, value in self.known if one.cell.size == size]))
            for size in self.sizes
        ]


def _scores(evaluated: Sequence[Evaluated], task: str, metric: str) -> _Scores:
    known = _cells_with(evaluated, task, metric)
    seeds = min(Counter(one.cell.size for one, _ in known).values())
    return _Scores(known, "seeds" if seeds > 1 or task == HELD_OUT else "examples", seeds)


def _trend(scores: _Scores, task: str, metric: str) -> Trend:
    if scores.unit == "seeds":
        values = [value for _, value in scores.known]
        return fit_trend([one.parameters for one, _ in scores.known], values, BETTER[metric])
    outcomes = [(one.parameters, one.examples[task]) for one, _ in scores.known]
    return fit_trend(
        [size for size, examples in outcomes for _ in _counted(examples, metric)],
        [
            float(examples.outcomes[metric][at])
            for _, examples in outcomes
            for at in _counted(examples, metric)
        ],
        BETTER[metric],
        [
            examples.groups[at] if examples.groups else (examples.keys[at], examples.ids[at])
            for _, examples in outcomes
            for at in _counted(examples, metric)
        ],
        [
            float(examples.weights[metric][at]) if metric in examples.weights else 1.0
            for _, examples in outcomes
            for at in _counted(examples, metric)
        ],
    )


def _counted(examples: TaskExamples, metric: str) -> list[int]:
    """Places of the examples that count in a metric, such as texts that have tokens near a cue."""
    weights = examples.weights.get(metric)
    return list(range(len(examples.ids))) if weights is None else np.flatnonzero(weights).tolist()


def _family_verdicts(
    evaluated: Sequence[Evaluated], keys: Sequence[tuple[str, str]], left: Sequence[LeftOut]
) -> list[ScalingVerdict]:
    found = [_scores(evaluated, *key) for key in keys]
    trends = [_trend(scores, *key) for scores, key in zip(found, keys, strict=True)]
    decisions = decide(trends, [BETTER[metric] for _, metric in keys])
    experiment = evaluated[0].cell.experiment
    return [
        ScalingVerdict(
            experiment=experiment,
            task=task,
            metric=metric,
            better=BETTER[metric],
            sizes=list(scores.sizes),
            parameters=list(scores.sizes.values()),
            means=scores.means,
            seeds=scores.seeds,
            unit=scores.unit,
            slope=trend.slope,
            slope_low=trend.low,
            slope_high=trend.high,
            p_slope=trend.p_slope,
            p_slope_holm=decision.p_slope,
            p_bend=trend.p_bend,
            p_bend_holm=decision.p_bend,
            turning_point=trend.turning_point,
            verdict=decision.verdict,
            slope_detectable=trend.detectable,
            left_out=count_left_out(left, None, experiment, task, metric),
            constant=count_constant([one for one, _ in scores.known], task, metric),
        )
        for (task, metric), scores, trend, decision in zip(keys, found, trends, decisions, strict=True)
    ]
