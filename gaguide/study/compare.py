"""Means over seeds, comparisons with baselines, and verdicts on size, from the evaluated cells. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from gaguide.evaluate.results.metric_names import ACCURACIES, BETTER
from gaguide.study.evaluated import HELD_OUT_METRIC, Evaluated, TaskExamples
from gaguide.study.records import HELD_OUT, Comparison, Mean, Result, ScalingVerdict
from gaguide.study.scaling import decide, fit_trend
from gaguide.study.statistics import holm, mcnemar, over_seeds, paired_bootstrap, t_interval

if TYPE_CHECKING:
    from gaguide.config import RunConfig
    from gaguide.study.grid import Grid


@dataclass(frozen=True)
class Pair:
    """A cell of an experiment and the baseline's, of one size and seed."""

    now: Evaluated
    """The experiment's cell."""
    before: Evaluated
    """The baseline's cell; one without a seed where no seed changes it."""

    @property
    def tasks(self) -> list[str]:
        """Tasks with outcomes of the same examples in both."""
        both = [n for n in self.now.examples if n in self.before.examples and self.now.examples[n].outcomes]
        return [n for n in both if self.now.examples[n].ids == self.before.examples[n].ids]


@dataclass(frozen=True)
class Contrast:
    """An experiment and one of its baselines, for one size."""

    size: str
    """Name of the size."""
    experiment: str
    """Name of the experiment."""
    baseline: str
    """Name of the baseline."""
    pairs: tuple[Pair, ...]
    """One pair for each seed, at least one."""

    @property
    def tasks(self) -> list[str]:
        """Tasks that can be compared."""
        return self.pairs[0].tasks

    @property
    def run(self) -> RunConfig | None:
        """The experiment's training, of the first seed."""
        return self.pairs[0].now.cell.run

    def examples(self, task: str) -> TaskExamples:
        """The task's examples with the experiment's outcomes, of the first seed."""
        return self.pairs[0].now.examples[task]

    def values(self, task: str, metric: str) -> list[tuple[float, float]]:
        """(experiment, baseline) values of a metric for each seed that has both."""
        values = [(pair.now.value(task, metric), pair.before.value(task, metric)) for pair in self.pairs]
        return [(now, before) for now, before in values if now is not None and before is not None]


def means(results: Sequence[Result]) -> list[Mean]:
    """The mean over seeds of each size, experiment, task and metric, with Student's interval."""
    groups: dict[tuple[str, str, str, str], list[Result]] = {}
    for row in results:
        groups.setdefault((row.size, row.experiment, row.task, row.metric), []).append(row)
    found = []
    for rows in groups.values():
        one, values = rows[0], [row.value for row in rows]
        low, high = t_interval(values) or (None, None)
        found.append(
            Mean(
                size=one.size,
                parameters=one.parameters,
                experiment=one.experiment,
                task=one.task,
                metric=one.metric,
                better=one.better,
                seeds=len(rows),
                value=float(np.mean(values)),
                low=low,
                high=high,
                chance=one.chance,
                paper=one.paper,
            )
        )
    return found


def find_contrasts(grid: Grid, cells: Sequence[Evaluated]) -> list[Contrast]:
    """Every experiment with each of its baselines, where both have evaluated cells."""
    by_key = {(one.cell.size, one.cell.experiment, one.cell.seed): one for one in cells}
    pairs: dict[tuple[str, str, str], list[Pair]] = {}
    for one in cells:
        cell = one.cell
        for baseline in grid.baselines(cell.experiment) if cell.role == "tuned" else ():
            before = by_key.get((cell.size, baseline, cell.seed)) or by_key.get((cell.size, baseline, None))
            if before is not None:
                pairs.setdefault((cell.size, cell.experiment, baseline), []).append(Pair(one, before))
    return [Contrast(*key, tuple(found)) for key, found in pairs.items()]


def compare(contrasts: Sequence[Contrast]) -> list[Comparison]:
    """Every pair on its examples, then every contrast over its seeds; Holm-corrected over tasks."""
    rows: list[Comparison] = []
    for contrast in contrasts:
        for pair in contrast.pairs:
            rows += _correct(list(_compare_examples(pair, contrast.baseline)), pair.now)
        rows += _correct(list(_compare_seeds(contrast)), contrast.pairs[0].now)
    return rows


def _compare_examples(pair: Pair, baseline: str) -> Iterator[Comparison]:
    cell = pair.now.cell
    for task in pair.tasks:
        now, before = pair.now.examples[task].outcomes, pair.before.examples[task].outcomes
        for metric in now:
            if metric in ACCURACIES:
                found = mcnemar((now[metric] > 0).tolist(), (before[metric] > 0).tolist())
            else:
                found = paired_bootstrap(now[metric].tolist(), before[metric].tolist())
            yield Comparison(
                level="seed",
                size=cell.size,
                parameters=pair.now.parameters,
                experiment=cell.experiment,
                baseline=baseline,
                seed=cell.seed,
                seeds=1,
                task=task,
                metric=metric,
                better=BETTER.get(metric),
                test="mcnemar" if metric in ACCURACIES else "bootstrap",
                count=len(now[metric]),
                value=float(now[metric].mean()),
                baseline_value=float(before[metric].mean()),
                **vars(found),
            )


def _compare_seeds(contrast: Contrast) -> Iterator[Comparison]:
    keys = [(task, metric) for task in contrast.tasks for metric in contrast.examples(task).outcomes]
    for task, metric in [*keys, (HELD_OUT, HELD_OUT_METRIC)]:
        known = contrast.values(task, metric)
        if not known:
            continue
        now, before = (np.asarray(column) for column in zip(*known, strict=True))
        found = over_seeds((now - before).tolist())
        yield Comparison(
            level="seeds",
            size=contrast.size,
            parameters=contrast.pairs[0].now.parameters,
            experiment=contrast.experiment,
            baseline=contrast.baseline,
            seed=None,
            seeds=len(known),
            task=task,
            metric=metric,
            better=BETTER.get(metric),
            test="t",
            count=None if task == HELD_OUT else len(contrast.examples(task).ids),
            value=float(now.mean()),
            baseline_value=float(before.mean()),
            **vars(found),
        )


def _correct(rows: list[Comparison], one: Evaluated) -> list[Comparison]:
    """Holm's correction over tasks: of their main metrics together, of each further metric by itself."""
    families = [_family(row.task, row.metric, one) for row in rows]
    corrected: list[Comparison] = list(rows)
    for name in dict.fromkeys(families):
        places = [index for index, own in enumerate(families) if own == name]
        for index, p in zip(places, holm([rows[place].p for place in places]), strict=True):
            corrected[index] = replace(rows[index], p_holm=p)
    return corrected


def _family(task: str, metric: str, one: Evaluated) -> str:
    """Name of the family of tests that a metric is corrected with."""
    if task == HELD_OUT:
        return HELD_OUT
    return "main" if metric == one.main_metric(task) else metric


def verdicts(cells: Sequence[Evaluated]) -> list[ScalingVerdict]:
    """How each task's score moves with size in each experiment, for metrics with a better direction."""
    found: list[ScalingVerdict] = []
    ordered = sorted(cells, key=lambda one: one.cell.experiment)
    for _, group in groupby(ordered, key=lambda one: one.cell.experiment):
        evaluated = sorted(group, key=lambda one: one.parameters)
        families: dict[str, list[tuple[str, str]]] = {}
        for task, metric in _scored(evaluated):
            families.setdefault(_family(task, metric, evaluated[0]), []).append((task, metric))
        for keys in families.values():
            found += _family_verdicts(evaluated, keys)
    names = list(dict.fromkeys(one.cell.experiment for one in cells))
    return sorted(found, key=lambda row: names.index(row.experiment))


def _scored(evaluated: Sequence[Evaluated]) -> list[tuple[str, str]]:
    """(task, metric) with outcomes of examples in every cell, and held-out loss where every cell has it."""
    keys = [
        (task, metric)
        for task, examples in evaluated[0].examples.items()
        for metric in examples.outcomes
        if metric in BETTER
    ]
    keys = [key for key in keys if all(one.value(*key) is not None for one in evaluated)]
    if all(one.value(HELD_OUT, HELD_OUT_METRIC) is not None for one in evaluated):
        keys.append((HELD_OUT, HELD_OUT_METRIC))
    return keys


def _family_verdicts(evaluated: Sequence[Evaluated], keys: Sequence[tuple[str, str]]) -> list[ScalingVerdict]:
    sizes = {one.cell.size: one.parameters for one in evaluated}
    seeds = min(sum(one.cell.size == size for one in evaluated) for size in sizes)
    trends, better = [], [BETTER[metric] for _, metric in keys]
    for task, metric in keys:
        if seeds > 1 or task == HELD_OUT:
            values = [one.value(task, metric) for one in evaluated]
            scores = [value for value in values if value is not None]
            trends.append(fit_trend([one.parameters for one in evaluated], scores, BETTER[metric]))
            continue
        outcomes = [(one.parameters, one.examples[task]) for one in evaluated]
        trends.append(
            fit_trend(
                [size for size, examples in outcomes for _ in examples.ids],
                [float(v) for _, examples in outcomes for v in examples.outcomes[metric]],
                BETTER[metric],
                [name for _, examples in outcomes for name in examples.ids],
            )
        )
    rows = []
    for (task, metric), trend, decision in zip(keys, trends, decide(trends, better), strict=True):
        averages = [
            float(np.mean([one.value(task, metric) or 0.0 for one in evaluated if one.cell.size == size]))
            for size in sizes
        ]
        rows.append(
            ScalingVerdict(
                experiment=evaluated[0].cell.experiment,
                task=task,
                metric=metric,
                better=BETTER[metric],
                sizes=list(sizes),
                parameters=list(sizes.values()),
                means=averages,
                seeds=seeds,
                unit="seeds" if seeds > 1 or task == HELD_OUT else "examples",
                slope=trend.slope,
                slope_low=trend.low,
                slope_high=trend.high,
                p_slope=trend.p_slope,
                p_slope_holm=decision.p_slope,
                p_bend=trend.p_bend,
                p_bend_holm=decision.p_bend,
                turning_point=trend.turning_point,
                verdict=decision.verdict,
            )
        )
    return rows
