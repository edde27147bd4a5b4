"""Means over seeds and comparisons with baselines, from the evaluated cells. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gaguide.evaluate.compare.metric_tests import match, metric_tests
from gaguide.evaluate.results.metric_names import BETTER, GROUP_ACC, SHARES
from gaguide.evaluate.results.outcomes import TaskExamples
from gaguide.grouping import grouped
from gaguide.stats.groups import ALPHA
from gaguide.stats.paired import holm, over_seeds, t_interval
from gaguide.stats.power import seeds_detectable
from gaguide.study.evaluated import HELD_OUT_METRIC, Evaluated
from gaguide.study.left_out import count_left_out
from gaguide.study.records import HELD_OUT, Comparison, LeftOut, Mean, Result

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
        """Tasks with outcomes of the same examples, by content, in both."""
        both = [n for n in self.now.examples if n in self.before.examples and self.now.examples[n].outcomes]
        return [n for n in both if self.now.examples[n].keys == self.before.examples[n].keys]


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
        """Tasks that can be compared in some seed."""
        return list(dict.fromkeys(task for pair in self.pairs for task in pair.tasks))

    def pairs_of(self, task: str) -> list[Pair]:
        """The pairs of the seeds in which a task of `tasks` can be compared."""
        return [pair for pair in self.pairs if task in pair.tasks]

    @property
    def run(self) -> RunConfig | None:
        """The experiment's training, of the first seed."""
        return self.pairs[0].now.cell.run

    def examples(self, task: str) -> TaskExamples:
        """The task's examples with the experiment's outcomes, of the first seed that has it."""
        return self.pairs_of(task)[0].now.examples[task]

    def values(self, task: str, metric: str) -> list[tuple[float, float]]:
        """(experiment, baseline) values of a metric for each seed that has both."""
        pairs = self.pairs if task == HELD_OUT else self.pairs_of(task)
        values = [(pair.now.value(task, metric), pair.before.value(task, metric)) for pair in pairs]
        return [(now, before) for now, before in values if now is not None and before is not None]

    def near_cues(self) -> dict[str, list[tuple[float, float]]]:
        """Lexicon → (experiment, baseline) losses near its words, for each seed with the same cues."""
        found: dict[str, list[tuple[float, float]]] = {}
        for pair in self.pairs:
            now, before = pair.now.near_cue, pair.before.near_cue
            if now is not None and before is not None and now.content == before.content:
                found.setdefault(now.lexicon, []).append((now.loss, before.loss))
        return found


def means(results: Sequence[Result], left: Sequence[LeftOut] = ()) -> Iterator[Mean]:
    """The mean over seeds of each size, experiment, task and metric, with Student's interval.

    `left`: rows that were left out of `results`; they are only counted.
    """
    for rows in grouped(((row.size, row.experiment, row.task, row.metric), row) for row in results).values():
        one, values = rows[0], [row.value for row in rows]
        low, high = t_interval(values) or (None, None)
        if low is not None and high is not None and one.metric in SHARES:
            low, high = max(0.0, low), min(1.0, high)
        yield Mean(
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
            left_out=count_left_out(left, one.size, one.experiment, one.task, one.metric),
            constant=sum(row.doubt == "constant" for row in rows),
            baseline=sum(row.doubt == "baseline" for row in rows),
            truncated=max(row.truncated for row in rows),
        )


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


def compare(contrasts: Sequence[Contrast], left: Sequence[LeftOut] = ()) -> Iterator[Comparison]:
    """Every pair on its examples, then every contrast over its seeds; Holm-corrected over tasks.

    `left`: rows that were left out of the contrasts; they are only counted.
    """
    for contrast in contrasts:
        for pair in contrast.pairs:
            yield from _correct(list(_compare_examples(pair, contrast.baseline)), [pair.now])
        over = list(_compare_seeds(contrast, left))
        yield from _correct(over, [pair.now for pair in contrast.pairs])


_Tested = tuple[Comparison, Callable[[float], float | None]]
"""A comparison, and the smallest difference that its test shows at a level."""


def _compare_examples(pair: Pair, baseline: str) -> Iterator[_Tested]:
    cell = pair.now.cell
    for task in pair.tasks:
        now, before = pair.now.examples[task], pair.before.examples[task]
        for one in metric_tests(now, before, match(now.keys, before.keys)):
            possible = one.sensitivity
            row = Comparison(
                level="seed",
                size=cell.size,
                parameters=pair.now.parameters,
                experiment=cell.experiment,
                baseline=baseline,
                seed=cell.seed,
                seeds=1,
                task=task,
                metric=one.metric,
                better=BETTER.get(one.metric),
                test=one.test,
                count=len(one.now),
                value=one.value,
                baseline_value=one.baseline_value,
                detectable=None if possible is None else possible.detectable,
                constant=count_constant((pair.now, pair.before), task, one.metric),
                **vars(one.found),
            )
            yield row, (lambda _: None) if possible is None else possible.smallest


def _compare_seeds(contrast: Contrast, left: Sequence[LeftOut]) -> Iterator[_Tested]:
    keys = [
        (task, metric)
        for task in contrast.tasks
        for metric in (*contrast.examples(task).outcomes, GROUP_ACC)  # groups have no outcome of an example
    ]
    for task, metric in [*keys, (HELD_OUT, HELD_OUT_METRIC)]:
        known = contrast.values(task, metric)
        if not known:
            continue
        now, before = (np.asarray(column) for column in zip(*known, strict=True))
        differences = (now - before).tolist()
        found, smallest = over_seeds(differences), partial(_shown_by_seeds, metric, differences)
        row = Comparison(
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
            count=None if task == HELD_OUT else _count(contrast.examples(task), metric),
            value=float(now.mean()),
            baseline_value=float(before.mean()),
            detectable=smallest(ALPHA),
            constant=count_constant(
                [one for pair in contrast.pairs for one in (pair.now, pair.before)], task, metric
            ),
            left_out=sum(
                count_left_out(left, contrast.size, experiment, task, metric)
                for experiment in (contrast.experiment, contrast.baseline)
            ),
            **vars(found),
        )
        yield row, smallest


def _shown_by_seeds(metric: str, differences: Sequence[float], level: float) -> float | None:
    """The smallest difference that the seeds' test shows at a level; of shares, None where it is above 1."""
    found = seeds_detectable(differences, level)
    return None if found is not None and metric in SHARES and found > 1 else found


def _count(examples: TaskExamples, metric: str) -> int:
    """Number of examples; of whole groups, of groups."""
    return len(set(examples.groups or ()) if metric == GROUP_ACC else examples.ids)


def count_constant(cells: Sequence[Evaluated], task: str, metric: str) -> int:
    """How many of these cells' models answer constantly; a baseline of several pairs counts once."""
    return len({one.cell.id for one in cells if one.doubt(task, metric) == "constant"})


def _correct(tested: Sequence[_Tested], cells: Sequence[Evaluated]) -> list[Comparison]:
    """Holm's correction over tasks: of their main metrics together, of each further metric separately."""
    corrected = [row for row, _ in tested]
    families = [family_of(row.task, row.metric, cells) for row in corrected]
    for name in dict.fromkeys(families):
        places = [index for index, own in enumerate(families) if own == name]
        ps = [corrected[place].p for place in places]
        level = ALPHA / max(1, sum(p is not None for p in ps))
        for index, p in zip(places, holm(ps), strict=True):
            row, smallest = tested[index]
            corrected[index] = replace(row, p_holm=p, detectable_holm=smallest(level))
    return corrected


def family_of(task: str, metric: str, cells: Sequence[Evaluated]) -> str:
    """Name of the family of tests that a metric is corrected with; some cell has the task."""
    if task == HELD_OUT:
        return HELD_OUT
    main = next(one.main_metric(task) for one in cells if task in one.tasks)
    return "main" if metric == main else metric
