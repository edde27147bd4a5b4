"""Comparisons of columns, means over seeds, and verdicts on size, from the evaluated cells. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from gaguide.evaluate.results.metric_names import ACCURACIES, BETTER
from gaguide.study.evaluated import Evaluated
from gaguide.study.records import HELD_OUT, Comparison, Mean, Result, ScalingVerdict
from gaguide.study.scaling import decide, fit_trend
from gaguide.study.statistics import Paired, holm, mcnemar, over_seeds, paired_bootstrap, t_interval

if TYPE_CHECKING:
    from gaguide.study.grid import Grid


@dataclass(frozen=True)
class Pair:
    """A column's cell and the baseline's, of one size and seed (or the baseline that no seed changes)."""

    now: Evaluated
    before: Evaluated

    @property
    def tasks(self) -> list[str]:
        """Tasks that both answered on the same examples."""
        both = [n for n in self.now.examples if n in self.before.examples and self.now.examples[n].outcomes]
        return [n for n in both if self.now.examples[n].ids == self.before.examples[n].ids]


def means(results: Sequence[Result]) -> list[Mean]:
    """The mean over seeds of each size, column, task and metric, with a t-interval."""
    groups: dict[tuple[str, str, str, str], list[Result]] = {}
    for row in results:
        groups.setdefault((row.size, row.experiment, row.task, row.metric), []).append(row)
    found = []
    for rows in groups.values():
        one, values = rows[0], [row.value for row in rows]
        low, high = t_interval(values) or (None, None)
        found.append(
            Mean(
                one.size, one.parameters, one.experiment, one.task, one.metric, one.better, len(rows),
                float(np.mean(values)), low, high, one.chance, one.paper,
            )
        )  # fmt: skip
    return found


def find_pairs(grid: Grid, cells: Sequence[Evaluated]) -> dict[tuple[str, str, str], list[Pair]]:
    """(size, column, baseline) → the pairs of its seeds."""
    by_key = {(one.cell.size, one.cell.experiment, one.cell.seed): one for one in cells}
    pairs: dict[tuple[str, str, str], list[Pair]] = {}
    for one in cells:
        cell = one.cell
        for baseline in grid.baselines(cell.experiment) if cell.role == "tuned" else ():
            before = by_key.get((cell.size, baseline, cell.seed)) or by_key.get((cell.size, baseline, None))
            if before is not None:
                pairs.setdefault((cell.size, cell.experiment, baseline), []).append(Pair(one, before))
    return pairs


def compare(pairs: dict[tuple[str, str, str], list[Pair]]) -> list[Comparison]:
    """Every pair by itself on its examples, then every column over its seeds; Holm-corrected over tasks."""
    rows: list[Comparison] = []
    for (_, _, baseline), listed in pairs.items():
        by_seed = [_correct(list(_compare_examples(pair, baseline)), pair.now) for pair in listed]
        over = _correct(list(_compare_seeds(listed, baseline)), listed[0].now)
        rows += [row for part in by_seed for row in part] + over
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
                "seed", cell.size, pair.now.parameters, cell.experiment, baseline, cell.seed, 1, task, metric,
                BETTER.get(metric), "mcnemar" if metric in ACCURACIES else "bootstrap", len(now[metric]),
                float(now[metric].mean()), float(before[metric].mean()), **_fields(found),
            )  # fmt: skip


def _compare_seeds(pairs: Sequence[Pair], baseline: str) -> Iterator[Comparison]:
    first, cell = pairs[0].now, pairs[0].now.cell
    keys = [(task, metric) for task in pairs[0].tasks for metric in first.examples[task].outcomes]
    for task, metric in [*keys, (HELD_OUT, "lm_loss")]:
        values = [(pair.now.value(task, metric), pair.before.value(task, metric)) for pair in pairs]
        known = [(now, before) for now, before in values if now is not None and before is not None]
        if not known:
            continue
        now, before = (np.asarray(column) for column in zip(*known, strict=True))
        found = over_seeds((now - before).tolist())
        count = None if task == HELD_OUT else len(first.examples[task].ids)
        yield Comparison(
            "seeds", cell.size, first.parameters, cell.experiment, baseline, None, len(known), task, metric,
            BETTER.get(metric), "t", count, float(now.mean()), float(before.mean()), **_fields(found),
        )  # fmt: skip


def _fields(found: Paired) -> dict[str, Any]:
    return {**vars(found)}


def _correct(rows: list[Comparison], one: Evaluated) -> list[Comparison]:
    """Holm over the tasks: their main metrics together, each further metric by itself; not held-out text."""
    family = [_family(row.task, row.metric, one) for row in rows]
    corrected: list[Comparison] = list(rows)
    for name in dict.fromkeys(family):
        places = [at for at, own in enumerate(family) if own == name]
        for at, p in zip(places, holm([rows[place].p for place in places]), strict=True):
            corrected[at] = replace(rows[at], p_holm=p)
    return corrected


def _family(task: str, metric: str, one: Evaluated) -> str:
    if task == HELD_OUT:
        return HELD_OUT
    return "main" if metric == one.main_metric(task) else metric


def verdicts(cells: Sequence[Evaluated]) -> list[ScalingVerdict]:
    """How each task moves with size in each column, for metrics that have a better and a worse."""
    found: list[ScalingVerdict] = []
    ordered = sorted(cells, key=lambda one: one.cell.experiment)
    for _, group in groupby(ordered, key=lambda one: one.cell.experiment):
        column = sorted(group, key=lambda one: one.parameters)
        families: dict[str, list[tuple[str, str]]] = {}
        for task, metric in _scored(column):
            families.setdefault(_family(task, metric, column[0]), []).append((task, metric))
        for keys in families.values():
            found += _family_verdicts(column, keys)
    names = list(dict.fromkeys(one.cell.experiment for one in cells))
    return sorted(found, key=lambda row: names.index(row.experiment))


def _scored(column: Sequence[Evaluated]) -> list[tuple[str, str]]:
    """(task, metric) that every cell has, example by example, and held-out loss."""
    keys = [
        (task, metric)
        for task, examples in column[0].examples.items()
        for metric in examples.outcomes
        if metric in BETTER
    ]
    keys = [key for key in keys if all(one.value(*key) is not None for one in column)]
    if all(one.value(HELD_OUT, "lm_loss") is not None for one in column):
        keys.append((HELD_OUT, "lm_loss"))
    return keys


def _family_verdicts(column: Sequence[Evaluated], keys: Sequence[tuple[str, str]]) -> list[ScalingVerdict]:
    sizes = {one.cell.size: one.parameters for one in column}
    seeds = min(sum(one.cell.size == size for one in column) for size in sizes)
    trends, better = [], [BETTER[metric] for _, metric in keys]
    for task, metric in keys:
        if seeds > 1 or task == HELD_OUT:
            values = [one.value(task, metric) for one in column]
            scores = [value for value in values if value is not None]
            trends.append(fit_trend([one.parameters for one in column], scores, BETTER[metric]))
            continue
        outcomes = [(one.parameters, one.examples[task]) for one in column]
        trends.append(
            fit_trend(
                [size for size, examples in outcomes for _ in examples.ids],
                [float(v) for _, examples in outcomes for v in examples.outcomes[metric]],
                BETTER[metric],
                [name for _, examples in outcomes for name in examples.ids],
            )
        )
    rows = []
    for (task, metric), trend, (verdict, p_slope, p_bend) in zip(keys, trends, decide(trends, better)):
        averages = [
            float(np.mean([one.value(task, metric) or 0.0 for one in column if one.cell.size == size]))
            for size in sizes
        ]
        rows.append(
            ScalingVerdict(
                column[0].cell.experiment, task, metric, BETTER[metric], list(sizes), list(sizes.values()),
                averages, seeds, "seeds" if seeds > 1 or task == HELD_OUT else "examples", trend.slope,
                trend.low, trend.high, trend.p_slope, p_slope, trend.p_bend, p_bend, trend.turning_point,
                verdict,
            )
        )  # fmt: skip
    return rows
