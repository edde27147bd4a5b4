"""Results of a task's parts, such as the conditions of a benchmark or the variants of a control. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gaguide.evaluate.results.answers import Uninformative, class_answers
from gaguide.evaluate.results.intervals import Metric, proportion
from gaguide.evaluate.results.metrics import ScoredExample, find_uninformative, summarize
from gaguide.evaluate.tasks.controls import ORIGINAL
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.task import Kind
from gaguide.grouping import grouped


@dataclass(frozen=True)
class PartResult:
    """The outcome of one part of a task."""

    count: int
    """Number of its examples."""
    metrics: Mapping[str, Metric]
    """Metrics by name, over its examples alone."""
    uninformative: Mapping[str, Uninformative]
    """The accuracies among its metrics that say nothing about the model's answers, and why."""
    constant: tuple[str, float] | None
    """The most frequent right answer, and the accuracy of always giving it; None without classes."""
    same_as_original: Metric | None = None
    """Share of examples in which the model chooses the same class as in the original; for variants of a
    control."""


def part_results(kind: Kind, scored: Sequence[ScoredExample]) -> dict[str, PartResult]:
    """Part → its outcome, in the order of the data; {} where no example has a part."""
    parts = grouped((one.example.part, one) for one in scored if one.example.part is not None)
    originals = {one.example.group: one for one in parts.get(ORIGINAL, ()) if one.example.group is not None}
    found = {}
    for name, members in parts.items():
        metrics = summarize(kind, members)
        found[name] = PartResult(
            len(members),
            metrics,
            find_uninformative(metrics, members),
            constant_answer([one.example for one in members]),
            None if name == ORIGINAL else _same_as_original(members, originals),
        )
    return found


def constant_answer(examples: Sequence[Example]) -> tuple[str, float] | None:
    """The most frequent right answer, and the accuracy of always giving it; None without classes."""
    if any(one.answer_index is None for one in examples):
        return None
    return class_answers(examples, [0] * len(examples)).majority()


def _same_as_original(
    members: Sequence[ScoredExample], originals: Mapping[str, ScoredExample]
) -> Metric | None:
    """None where there is no original, or a prediction is missing."""
    pairs = [
        (one, originals[one.example.group])
        for one in members
        if one.example.group is not None and one.example.group in originals
    ]
    if not pairs or any(one.predicted is None or other.predicted is None for one, other in pairs):
        return None
    return proportion([_chosen(one) == _chosen(other) for one, other in pairs])


def _chosen(one: ScoredExample) -> str:
    assert one.predicted is not None
    return one.example.continuations[one.predicted]
