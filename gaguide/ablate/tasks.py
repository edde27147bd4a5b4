"""The effect of removing heads on tasks, by the evaluator: its batches, its cached prefixes, its metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gaguide.ablate.effects import TaskEffects
from gaguide.ablate.records import Effect
from gaguide.ablate.subjects import Key, Subject
from gaguide.ablate.text import removals
from gaguide.evaluate.results.intervals import clusters
from gaguide.evaluate.results.metric_names import ACCURACIES
from gaguide.evaluate.results.task_results import TaskResult, make_task_results
from gaguide.evaluate.schedule.work import ModelWork
from gaguide.evaluate.score.logits import Scores
from gaguide.evaluate.score.scorer import Scorer, Sharing
from gaguide.evaluate.tasks.read import TaskData
from gaguide.guidance.patterns import MarksOfIds, marked
from gaguide.interventions import intervene
from gaguide.stats.paired import mcnemar, rate_change


@dataclass(frozen=True)
class TaskMeasure:
    """Tasks with and without the heads."""

    values: Mapping[str, Mapping[str, float | None]]
    """Task → metric → value without an intervention; None where it is not finite."""
    effects: TaskEffects
    """(head, method) → task → metric → change."""


def measure_tasks(
    model: Any,
    work: ModelWork,
    data: Sequence[TaskData],
    subjects: Sequence[Subject],
    methods: Sequence[str],
    means: Mapping[Key, torch.Tensor],
    tick: Callable[[int, int], None] = lambda done, of: None,
    marks: MarksOfIds | None = None,
) -> TaskMeasure:
    """Every example of `data` scored once as it is and once for each head and method; `marks`: those that the
    data give, for patterns that need them.

    Examples that share a prefix share its keys and values, computed with the head removed. Where edges are
    removed, sequences are computed separately: the keys that a pattern marks may be in the prefix.
    """
    sharing = _detect_sharing(model, work, subjects[0], methods, means)
    results = _results(model, work, data, sharing)
    clean = {name: _outcomes(result) for name, result in results.items()}
    values = {
        name: {
            metric: value.value if math.isfinite(value.value) else None
            for metric, value in result.metrics.items()
        }
        for name, result in results.items()
    }
    effects: dict[tuple[Key, str], Mapping[str, Mapping[str, Effect]]] = {}
    for subject in subjects:
        for method in methods:
            with intervene(model, *removals([subject], method, means)), marked(marks or {}):
                found = _results(model, work, data, Sharing.NOTHING if method == "edges" else sharing)
            effects[subject.key, method] = {
                name: {
                    metric: _change(metric, outcome, clean[name][metric])
                    for metric, outcome in _outcomes(result).items()
                }
                for name, result in found.items()
            }
            tick(len(effects), len(subjects) * len(methods))
    return TaskMeasure(values, effects)


def _detect_sharing(
    model: Any, work: ModelWork, subject: Subject, methods: Sequence[str], means: Mapping[Key, torch.Tensor]
) -> Sharing:
    """Prefixes that may be computed once while a head is removed by its output."""
    by_output = next((method for method in methods if method != "edges"), None)
    scorer = Scorer(model, model.device)
    if by_output is None:
        scorer.detect_sharing(work.batches)
        return scorer.sharing
    with intervene(model, *removals([subject], by_output, means)):
        scorer.detect_sharing(work.batches)
    return scorer.sharing


def _results(
    model: Any, work: ModelWork, data: Sequence[TaskData], sharing: Sharing
) -> dict[str, TaskResult]:
    scorer = Scorer(model, model.device, sharing)
    scores: Scores = {}
    for batch in work.batches:
        scores |= scorer.generate(batch.rows) if batch.generates else scorer.score(batch.rows, batch.prefix)
    return make_task_results(data, work.encoded, scores, work.folder)


@dataclass(frozen=True)
class _Outcome:
    values: list[float]
    """Value of each example; NaN where it has none."""
    counts: list[float]
    """Divisor of each value in a metric: 1, tokens or bytes."""
    groups: Sequence[str] | None
    """Group of each example."""


def _outcomes(result: TaskResult) -> dict[str, _Outcome]:
    """Metric → outcomes of the examples; a task's main metrics only."""
    scored, kind = result.scored, result.data.kind
    groups = clusters([one.example.id for one in scored], [one.example.group for one in scored])
    values, ones = [one.value for one in scored], [1.0] * len(scored)
    if kind in ("classification", "numeric"):
        hits = [one.correct if kind == "classification" else one.correct_number for one in scored]
        right = [float(bool(hit)) if one.finite else math.nan for hit, one in zip(hits, scored, strict=True)]
        found = {"acc": _Outcome(right, ones, groups)}
        return found | ({"class_loss": _Outcome(values, ones, groups)} if kind == "classification" else {})
    if kind == "perplexity":
        tokens = [float(sum(one.target_tokens)) for one in scored]
        return {"loss": _Outcome(values, tokens, None)}
    if kind == "rolling":
        sizes = [float(len(one.example.continuations[0].encode("utf-8"))) for one in scored]
        return {"bits_per_byte": _Outcome([value / math.log(2) for value in values], sizes, groups)}
    return {"loss" if kind == "sequence_prob" else kind: _Outcome(values, ones, groups)}


def _change(metric: str, without: _Outcome, clean: _Outcome) -> Effect:
    """The change, paired by example; no number where an example has none with or without the head."""
    changes = [after - before for after, before in zip(without.values, clean.values, strict=True)]
    if not all(map(math.isfinite, changes)):
        return Effect(None, count=len(changes))
    if metric in ACCURACIES:
        right, before = ([value > 0 for value in one.values] for one in (without, clean))
        found = mcnemar(right, before, clean.groups)
    else:
        found = rate_change(changes, clean.counts, clean.groups)
    return Effect(found.difference, found.low, found.high, found.p, None, len(changes))
