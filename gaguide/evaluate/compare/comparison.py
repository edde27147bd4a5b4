"""Several evaluations on the same examples: tests, corrections, power, what was gained and lost. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from gaguide.evaluate.compare.metric_tests import Matched, MetricTest, match, metric_tests, other_units
from gaguide.evaluate.compare.records import Change, Comparison, ExampleChange, TaskComparison
from gaguide.evaluate.compare.sources import Evaluation
from gaguide.evaluate.results.metric_names import BETTER, GROUP_ACC, Better
from gaguide.stats.paired import holm

_HIGH = ("exact_match", "em", "f1", "mcc", "bleu", "rouge1", "rouge2", "rougeL")
"""Metrics of lm-evaluation-harness only where higher is better."""


@dataclass(frozen=True)
class CompareOptions:
    """Which evaluations are compared, and how examples are matched."""

    all_pairs: bool = False
    """Compare every two evaluations, not only each with the first."""
    match: Literal["content", "id"] = "content"
    """content: examples that ask the same, prompt included; id: where not all do, the same id and the same
    answer, for evaluations that differ in the prompt, such as with and without demonstrations."""
    detect: tuple[float, ...] = (0.01, 0.02, 0.05)
    """True differences for which power is computed."""


def compare_evaluations(evaluations: Sequence[Evaluation], options: CompareOptions) -> Comparison:
    """Compare each evaluation with the first, or every two, on the examples that they share."""
    pairs = list(combinations(evaluations, 2)) if options.all_pairs else [
        (evaluations[0], other) for other in evaluations[1:]
    ]  # fmt: skip
    tests: list[TaskComparison] = []
    changes: list[ExampleChange] = []
    notes: list[str] = []
    for before, now in pairs:
        for only, other in ((before, now), (now, before)):
            missing = [task for task in only.tasks if task not in other.tasks]
            if missing:
                notes.append(f"Only {only.name} was evaluated on {', '.join(missing)}; {other.name} was not")
        notes += _other_settings(now, before)
        for task in (name for name in before.tasks if name in now.tasks):
            matched = _match(before, now, task, options, notes)
            if matched is None:
                continue
            found = list(metric_tests(now.tasks[task], before.tasks[task], matched))
            if apart := other_units(now.tasks[task], before.tasks[task], matched):
                notes.append(
                    f"{now.name} against {before.name}, {task}: {', '.join(apart)} not compared, as the two "
                    "count other tokens (another tokenizer)"
                )
            if not found and not apart:
                notes.append(f"{now.name}, {task}: no metric has finite scores in both; not compared")
                continue
            if not found:
                continue
            main = _main_metric(before, now, task, found)
            records = [_record(now, before, task, one, main, options) for one in found]
            if _is_copy(found):
                notes.append(
                    f"{now.name} against {before.name}, {task}: every score of the {len(found[0].now)} "
                    "examples is the same, as if one model was evaluated twice"
                )
            tests += sorted(records, key=lambda one: not one.is_main)
            changes += _changes(now, before, task, found, main)
    return Comparison(tuple(evaluations), tuple(_corrected(tests)), tuple(changes), tuple(notes))


def _other_settings(now: Evaluation, before: Evaluation) -> Iterator[str]:
    """A sentence on each setting in which the evaluations of the tasks of both differ."""
    found: dict[str, list[str]] = {}
    for task in (name for name in before.tasks if name in now.tasks):
        own, base = now.settings.get(task, {}), before.settings.get(task, {})
        for name in (name for name in own if name in base and own[name] != base[name]):
            found.setdefault(f"{name} {own[name]} instead of {base[name]}", []).append(task)
    for what, tasks in found.items():
        yield f"{now.name} against {before.name}: {', '.join(tasks)}: evaluated with {what}"


def _match(
    before: Evaluation, now: Evaluation, task: str, options: CompareOptions, notes: list[str]
) -> Matched | None:
    """The task's examples in common; None, with a note, where there is none."""
    first, second = before.tasks[task], now.tasks[task]
    where = f"{now.name} against {before.name}, {task}"
    keys = second.keys, first.keys
    matched, by_id = match(*keys), False
    if options.match == "id" and not matched.is_complete:
        keys, by_id = (second.question_keys, first.question_keys), True
        matched = match(*keys)
    count = len(matched.now)
    if not count:
        is_same_id = not by_id and set(first.question_keys) & set(second.question_keys)
        what = "has the same id and answer" if by_id else "asks the same"
        remedy = (
            "--match id compares examples of one id whose prompts differ"
            if is_same_id
            else "evaluate both on the same data"
        )
        notes.append(f"{where}: not compared, as no example {what}; {remedy}")
        return None
    if by_id:
        places = zip(matched.now.tolist(), matched.before.tolist(), strict=True)
        other = sum(second.prompts[a] != first.prompts[b] for a, b in places)
        notes.append(f"{where}: matched by id and answer; {other} of {count} prompts differ")
    if not matched.is_complete:
        rest = [len(second.keys) - count, len(first.keys) - count]
        notes.append(
            f"{where}: compared on the {count} examples that both were asked; left out are {rest[0]} that "
            f"only {now.name} and {rest[1]} that only {before.name} was asked"
        )
    repeated = count - len({keys[0][place] for place in matched.now.tolist()})
    if repeated and second.groups is None:
        notes.append(
            f"{where}: {repeated} of {count} examples ask the same as another one; each counts, so that "
            "intervals and p values are too small"
        )
    return matched


def _is_copy(found: Sequence[MetricTest]) -> bool:
    """Whether all scores of a task agree to the last bit, losses among them: equal answers say little."""
    losses = [one for one in found if one.test == "bootstrap"]
    return bool(losses) and all(np.array_equal(one.now, one.before) for one in found)


def _main_metric(before: Evaluation, now: Evaluation, task: str, found: Sequence[MetricTest]) -> str:
    tested = [one.metric for one in found]
    chosen = before.main_metrics.get(task, now.main_metrics.get(task))
    if chosen == "acc" and "acc" not in tested:  # greedy accuracy, as lm-evaluation-harness calls it
        chosen = "greedy_acc"
    return chosen if chosen in tested else tested[0]


def _record(
    now: Evaluation, before: Evaluation, task: str, one: MetricTest, main: str, options: CompareOptions
) -> TaskComparison:
    found, possible = one.found, one.sensitivity
    asked = [now.tasks[task].keys[place] for place in one.places.tolist()]
    whole = one.metric == GROUP_ACC
    return TaskComparison(
        evaluation=now.name,
        baseline=before.name,
        task=task,
        metric=one.metric,
        is_main=one.metric == main,
        better=better_direction(one.metric),
        test=one.test,
        count=len(one.now),
        unmatched=0 if whole else len(now.tasks[task].keys) - len(one.now) - one.left_out,
        baseline_unmatched=0 if whole else len(before.tasks[task].keys) - len(one.now) - one.left_out,
        repeated=0 if whole else len(asked) - len(set(asked)),
        left_out=one.left_out,
        groups=found.groups,
        value=one.value,
        baseline_value=one.baseline_value,
        doubt=now.doubts.get(task, {}).get(one.metric),
        baseline_doubt=before.doubts.get(task, {}).get(one.metric),
        difference=found.difference,
        low=found.low,
        high=found.high,
        p=found.p,
        p_exact=found.p_exact,
        gained=found.helped,
        lost=found.hurt,
        effect=one.effect,
        detectable=None if possible is None else possible.detectable,
        power=() if possible is None else tuple((size, possible.power(size)) for size in options.detect),
        needed=None if possible is None else possible.needed(found.difference),
    )


def better_direction(metric: str) -> Better | None:
    """Which direction of a metric of gaguide or lm-evaluation-harness is better; None where unknown."""
    name = metric.split(",")[0]
    return BETTER.get(name, "high" if name in _HIGH else None)


def _corrected(tests: Sequence[TaskComparison]) -> list[TaskComparison]:
    families = ["" if one.is_main else one.metric for one in tests]
    corrected = list(tests)
    for family in dict.fromkeys(families):
        places = [place for place, own in enumerate(families) if own == family]
        for place, p in zip(places, holm([tests[place].p for place in places]), strict=True):
            corrected[place] = replace(tests[place], p_holm=p)
    return corrected


def _changes(
    now: Evaluation, before: Evaluation, task: str, found: Sequence[MetricTest], main: str
) -> Iterator[ExampleChange]:
    """Examples whose main metric changed: right or wrong answers; else each, by how its value moved."""
    chosen = next(one for one in found if one.metric == main)
    loss = next((one for one in found if one.test == "bootstrap"), None)
    moved: dict[int, float] = {}
    if loss is not None:
        moved = dict(zip(loss.places.tolist(), (loss.now - loss.before).tolist(), strict=True))
    better, differences = better_direction(main) or "high", chosen.now - chosen.before
    after, earlier = now.tasks[task], before.tasks[task]
    places, others = chosen.places.tolist(), chosen.baseline_places.tolist()
    changed = np.flatnonzero(differences).tolist()
    for at in sorted(changed, key=lambda at: -abs(moved.get(places[at], differences[at]))):
        place, other = places[at], others[at]
        good = (differences[at] > 0) == (better == "high")
        names: tuple[Change, Change] = ("gained", "lost") if chosen.test == "mcnemar" else ("better", "worse")
        yield ExampleChange(
            evaluation=now.name,
            baseline=before.name,
            task=task,
            id=after.ids[place],
            change=names[0] if good else names[1],
            prompt=after.prompts[place] or "",
            answer=after.answers[place],
            baseline_prediction=earlier.predictions[other],
            prediction=after.predictions[place],
            loss_difference=moved.get(place),
        )
