"""Each example's contribution to lm-evaluation-harness's metrics (0.4.13), under its names. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gaguide.errors import UserError, first_line
from gaguide.evaluate.results.metrics import ScoredExample
from gaguide.evaluate.results.numbers import first_largest
from gaguide.evaluate.tasks.harness.config import HarnessTask
from gaguide.evaluate.tasks.harness.source import FunctionReference

Items = dict[str, Any]
"""Metric → an example's item: a number, (right, predicted), (right, probabilities) or (log-likelihood,
weight)."""


def example_items(task: HarnessTask, one: ScoredExample) -> Items:
    """The items of one example, whose scores are finite."""
    if task.process_results is not None:
        return _from_function(task, task.process_results, one)
    of = {
        "multiple_choice": _choice_items,
        "loglikelihood": lambda one: {
            "perplexity": lambda: one.log_probabilities[0],
            "acc": lambda: int(one.greedy[0]),
        },
        "loglikelihood_rolling": _rolling_items,
    }[task.output_type]
    items = of(one)
    return {metric.name: items[metric.name]() for metric in task.metrics}


def raw_results(task: HarnessTask, one: ScoredExample) -> list[Any]:
    """The harness's model outputs for the example: (log-likelihood, is greedy), or the sum if rolling."""
    if task.output_type == "loglikelihood_rolling":
        return [math.fsum(one.log_probabilities)]
    return list(zip(one.log_probabilities, one.greedy, strict=True))


def _choice_items(one: ScoredExample) -> Mapping[str, Callable[[], Any]]:
    example = one.example
    count = len(example.continuations)
    given, alone = one.log_probabilities[:count], one.log_probabilities[count:]
    texts, right = example.counted_texts, example.answers

    def is_right(scores: Sequence[float]) -> float:
        return float(first_largest(scores) in right)

    def mutual_information() -> float:
        return is_right([after - before for after, before in zip(given, alone, strict=True)])

    # As the harness reports them: a list where the target is one.
    answer = right[0] if len(right) == 1 else list(right)
    return {
        "acc": lambda: is_right(given),
        "acc_norm": lambda: is_right(_per(given, [len(text) for text in texts])),
        "acc_bytes": lambda: is_right(_per(given, [len(text.encode("utf-8")) for text in texts])),
        "acc_mutual_info": mutual_information,
        "exact_match": lambda: int(any(one.greedy[at] for at in right)),
        "f1": lambda: (answer, first_largest(given)),
        "mcc": lambda: (answer, first_largest(given)),
        "brier_score": lambda: (answer, _softmax(given)),
    }


def _rolling_items(one: ScoredExample) -> Mapping[str, Callable[[], Any]]:
    text, total = one.example.continuations[0], math.fsum(one.log_probabilities)
    words, size = len(re.split(r"\s+", text)), len(text.encode("utf-8"))
    return {
        "word_perplexity": lambda: (total, words),
        "byte_perplexity": lambda: (total, size),
        "bits_per_byte": lambda: (total, size),
    }


def _from_function(task: HarnessTask, function: FunctionReference, one: ScoredExample) -> Items:
    try:
        return dict(function.load()(dict(one.example.document or {}), raw_results(task, one)))
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        problem = f"!function {function.name} raised {type(error).__name__}: {first_line(error)}"
        where = f"task {task.name}: process_results"
        remedy = f"correct {function.file}; the scores are kept, and the same command uses them"
        raise UserError.of(where, problem, remedy, one.example.id) from None


def _per(scores: Sequence[float], lengths: Sequence[int]) -> list[float]:
    return [score / length for score, length in zip(scores, lengths, strict=True)]


def _softmax(scores: Sequence[float]) -> list[float]:
    largest = max(scores)
    parts = [math.exp(score - largest) for score in scores]
    return [part / math.fsum(parts) for part in parts]
