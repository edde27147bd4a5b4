"""The outcome of a task, made from the scores of its examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile

from gaguide.evaluate.encode.encoder import EncodedPair
from gaguide.evaluate.model_folder import ModelFolder
from gaguide.evaluate.results.answers import Uninformative, doubt_sentences
from gaguide.evaluate.results.harness_metrics import harness_metrics
from gaguide.evaluate.results.intervals import Metric
from gaguide.evaluate.results.metrics import (
    ScoredExample,
    chance_level,
    find_uninformative,
    not_finite,
    score_example,
    score_number,
    summarize,
)
from gaguide.evaluate.tasks.examples import list_some
from gaguide.evaluate.tasks.read import TaskData


@dataclass(frozen=True)
class TaskResult:
    """The outcome of one task."""

    data: TaskData
    """The task and its examples."""
    metrics: Mapping[str, Metric]
    """Metrics by name, the main one first."""
    chance: float | None
    """Accuracy of a random choice of class."""
    scored: tuple[ScoredExample, ...]
    """Outcomes of the examples, in the order of the data."""

    @cached_property
    def uninformative(self) -> Mapping[str, Uninformative]:
        """Accuracies that say nothing about the model's answers, and why."""
        return find_uninformative(self.metrics, self.scored)

    def doubts(self) -> list[str]:
        """A sentence on each reason in `uninformative`."""
        values = {metric: self.metrics[metric].value for metric in self.uninformative}
        return doubt_sentences(self.data.task.name, values, self.uninformative)

    def warnings(self) -> list[str]:
        """Problems of the model that the scores show, one sentence each."""
        found = not_finite(self.scored)
        if not found:
            return []
        return [
            f"task {self.data.task.name}: the scores of {len(found)} of {len(self.scored)} examples "
            f"({len(found) / len(self.scored):.0%}) are not finite ({list_some(found)}), so it has no "
            "metrics; look for NaN or infinite weights, or evaluate with --dtype fp32"
        ]


def make_task_results(
    data: Sequence[TaskData],
    encoded: Sequence[Sequence[EncodedPair]],
    scores: Mapping[tuple[int, int], float],
    folder: ModelFolder,
) -> dict[str, TaskResult]:
    """Each task's outcome by name, from the scores of all examples by (example, pair).

    A generated text ends before the first token that ends texts of the model.
    """
    greedy = [task.scores_greedy for task in data for _ in task.examples]
    wanted = {(at, nth) for at, pairs in enumerate(encoded) for nth in range(len(pairs) * (1 + greedy[at]))}
    assert scores.keys() == wanted, f"{len(wanted ^ scores.keys())} scores are missing or unexpected"
    results, at = {}, 0
    for task in data:
        scored = []
        for whole in task.examples:
            pairs = encoded[at]
            example = whole.without_demonstrations(pairs[0].dropped if pairs else 0)
            values = [scores[at, nth] for nth in range(len(pairs))]
            hits = [scores[at, len(pairs) + nth] for nth in range(len(pairs) * greedy[at])]
            if task.kind == "numeric":
                values = list(takewhile(lambda token: token not in folder.end_ids, values))
                finite = all(map(math.isfinite, values))
                text = folder.tokenizer.decode([int(value) for value in values]) if finite else None
                outcome = score_number(example, text)
                pairs = pairs[:1]  # one prompt, named once for each generated token
            else:
                tokens = [len(pair.target_ids) for pair in pairs]
                outcome = score_example(task.kind, example, values, tokens, [hit == 1.0 for hit in hits])
            bands = tuple(pair.band for pair in pairs) if task.kind == "near_cue" else ()
            cut = tuple(pair.truncated for pair in pairs)
            scored.append(replace(outcome, tokens_cut=cut, bands=bands))
            at += 1
        metrics, chance = summarize(task.kind, scored), chance_level(task.kind, task.examples)
        if task.harness is not None:
            metrics = _with_harness(metrics, harness_metrics(task.harness, scored))
        results[task.task.name] = TaskResult(task, metrics, chance, tuple(scored))
    return results


def _with_harness(own: Mapping[str, Metric], harness: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics of a task of the harness: whatever has a name of the harness's has its number."""
    renamed = {"perplexity": "token_perplexity"}
    kept = {renamed.get(name, name): metric for name, metric in own.items() if name != "greedy_acc"}
    return {**harness, **kept, **harness}
