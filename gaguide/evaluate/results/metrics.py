"""From log-probabilities to metrics with intervals. Pure, without torch.

classification: `acc` takes the most probable class (the first of equals), `acc_norm` divides by the
characters of a class first (without the task's delimiter), `class_loss` is the negative logarithm of the
right class's share among the classes. sequence_prob: `loss` is the mean negative log-likelihood of a
completion, `perplexity` that of a token. logodds kinds: the change in the log-odds of the two classes from
the other prompt to the prompt. numeric: `acc` counts generated numbers that equal the answer, `answered`
texts that contain a number, `abs_error` is the mean distance from the answer. perplexity: `loss` and
`perplexity` of a token of held-out text. rolling: `word_perplexity`, `byte_perplexity` and `bits_per_byte` of
whole documents.

An example whose scores are not all finite (NaN or infinite, as of a model with NaN weights) has no outcome. A
task that contains one has no metrics: a metric over the other examples would be that of a selection which the
model's failure made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from gaguide.evaluate.results.intervals import (
    NO_METRIC,
    Groups,
    Metric,
    clusters,
    mean,
    perplexity,
    proportion,
    rate,
)
from gaguide.evaluate.results.numbers import first_number
from gaguide.evaluate.tasks.examples import Example
from gaguide.evaluate.tasks.task import Kind

NEAR_TIE = 2e-4
"""Log-probabilities closer than this may swap places with another order of summation."""


@dataclass(frozen=True)
class ScoredExample:
    """The outcome of one example."""

    example: Example
    """What was asked."""
    log_probabilities: tuple[float, ...]
    """Of the example's pairs, in their order."""
    target_tokens: tuple[int, ...]
    """Scored tokens of each pair."""
    value: float
    """Contribution to the main loss of the kind; NaN where there is none."""
    tokens_cut: tuple[int, ...] = ()
    """Tokens of each pair's prompt that were cut on the left, since the model is shorter."""
    finite: bool = True
    """Whether the model's scores are finite. Where they are not, there is no prediction."""
    predicted: int | None = None
    """Index of the most probable class."""
    predicted_norm: int | None = None
    """Index of the class that is most probable per character."""
    margin: float | None = None
    """Log-probability of the answer minus that of the best other class."""
    greedy: tuple[bool, ...] = ()
    """Whether each pair's continuation is what greedy decoding gives; () where it was not asked."""
    text: str | None = None
    """Kind numeric: the generated text."""
    number: float | None = None
    """Kind numeric: the number in it."""

    @property
    def correct(self) -> bool | None:
        """Whether the most probable class is the answer; None where there are no classes."""
        return None if self.predicted is None else self.predicted in self.example.answers

    @property
    def correct_norm(self) -> bool | None:
        """The same with log-probabilities per character."""
        return None if self.predicted_norm is None else self.predicted_norm in self.example.answers

    @property
    def correct_number(self) -> bool:
        """Whether the generated number equals the answer."""
        answer = self.example.number
        return self.number is not None and answer is not None and math.isclose(self.number, answer)


def score_example(
    kind: Kind,
    example: Example,
    log_probabilities: Sequence[float],
    target_tokens: Sequence[int],
    greedy: Sequence[bool] = (),
) -> ScoredExample:
    """The outcome of `example` from the log-probabilities of its pairs, in their order.

    greedy: whether each pair's continuation is the greedy one, where that was asked.
    """
    values, tokens, hits = tuple(log_probabilities), tuple(target_tokens), tuple(greedy)
    if not all(map(math.isfinite, values)):
        return ScoredExample(example, values, tokens, math.nan, finite=False)
    if kind in ("sequence_prob", "perplexity", "rolling"):
        return ScoredExample(example, values, tokens, -math.fsum(values), greedy=hits)
    if kind != "classification":
        difference = (values[0] - values[1]) - (values[2] - values[3])
        signed = abs(difference) if kind == "absolute_logodds" else difference
        if kind == "logodds" and example.answer_index == 1:
            signed = -difference
        return ScoredExample(example, values, tokens, signed)
    given = values[: len(example.continuations)]
    right = [given[at] for at in example.answers]
    lengths = map(len, example.counted_texts)
    per_character = [
        value / length if length else -math.inf for value, length in zip(given, lengths, strict=True)
    ]
    others = [value for at, value in enumerate(given) if at not in example.answers]
    return ScoredExample(
        example, values, tokens,
        value=_log_sum_exp(given) - _log_sum_exp(right),
        predicted=_first_largest(given),
        predicted_norm=_first_largest(per_character),
        margin=max(right) - max(others) if others else None,
        greedy=hits,
    )  # fmt: skip


def score_number(example: Example, text: str | None) -> ScoredExample:
    """The outcome of a numeric `example` from the text that the model generated; None where logits were not
    finite."""
    assert example.number is not None
    if text is None:
        return ScoredExample(example, (), (), math.nan, finite=False)
    number = first_number(text)
    error = math.nan if number is None else abs(number - example.number)
    return ScoredExample(example, (), (), error, text=text, number=number)


def summarize(kind: Kind, scored: Sequence[ScoredExample]) -> dict[str, Metric]:
    """The metrics of a task by name, each without a value where the scores of an example are not finite."""
    if not all(one.finite for one in scored):
        return dict.fromkeys(_metric_names(kind), NO_METRIC)
    values, groups = [one.value for one in scored], _clusters(scored)
    if kind == "classification":
        right = [bool(one.correct) for one in scored]
        return {
            "acc": proportion(right, groups),
            "acc_norm": proportion([bool(one.correct_norm) for one in scored], groups),
            "class_loss": mean(values, groups),
        } | _group_accuracy(right, groups)
    if kind == "numeric":
        answered = [one for one in scored if one.number is not None]
        right = [one.correct_number for one in scored]
        return (
            {
                "acc": proportion(right, groups),
                "answered": proportion([one.number is not None for one in scored], groups),
            }
            | ({"abs_error": mean([one.value for one in answered], _clusters(answered))} if answered else {})
            | _group_accuracy(right, groups)
        )
    if kind == "perplexity":
        tokens = [sum(one.target_tokens) for one in scored]
        return {"loss": rate(values, tokens), "perplexity": perplexity(values, tokens)}
    if kind == "sequence_prob":
        asked = all(one.greedy for one in scored)
        return {
            "loss": mean(values, groups),
            "perplexity": perplexity(values, [one.target_tokens[0] for one in scored], groups),
        } | ({"greedy_acc": proportion([all(one.greedy) for one in scored], groups)} if asked else {})
    if kind == "rolling":
        texts = [one.example.continuations[0] for one in scored]
        sizes = [len(text.encode("utf-8")) for text in texts]
        bits = [value / math.log(2) for value in values]
        return {
            "word_perplexity": perplexity(values, [len(re.split(r"\s+", text)) for text in texts], groups),
            "byte_perplexity": perplexity(values, sizes, groups),
            "bits_per_byte": rate(bits, sizes, groups),
        }
    return {kind: mean(values, groups)}


def _clusters(scored: Sequence[ScoredExample]) -> Groups:
    return clusters([one.example.id for one in scored], [one.example.group for one in scored])


def _group_accuracy(right: Sequence[bool], groups: Groups) -> dict[str, Metric]:
    """Share of groups in which every answer is right; groups are independent."""
    if groups is None:
        return {}
    whole: dict[Hashable, bool] = {}
    for group, is_right in zip(groups, right, strict=True):
        whole[group] = whole.get(group, True) and is_right
    return {"group_acc": proportion(list(whole.values()))}


def _metric_names(kind: Kind) -> tuple[str, ...]:
    if kind == "classification":
        return ("acc", "acc_norm", "class_loss")
    if kind == "numeric":
        return ("acc", "answered", "abs_error")
    if kind == "rolling":
        return ("word_perplexity", "byte_perplexity", "bits_per_byte")
    return ("loss", "perplexity") if kind in ("perplexity", "sequence_prob") else (kind,)


def not_finite(scored: Sequence[ScoredExample]) -> list[str]:
    """Ids of the examples whose scores are not finite."""
    return [one.example.id for one in scored if not one.finite]


def worst(scored: Sequence[ScoredExample], count: int) -> list[ScoredExample]:
    """Up to `count` examples that the model got wrong, the most confident ones (smallest margins) first."""
    wrong = [one for one in scored if one.correct is False and one.margin is not None]
    return sorted(wrong, key=lambda one: one.margin or 0.0)[:count]


def near_ties(scored: Sequence[ScoredExample]) -> list[str]:
    """Ids of the examples whose two most probable classes are within `NEAR_TIE`, so that rounding decides."""
    found = []
    for one in scored:
        if one.predicted is not None:
            asked = one.log_probabilities[: len(one.example.continuations)]
            first, second = sorted(asked, reverse=True)[:2]
            if first - second < NEAR_TIE:
                found.append(one.example.id)
    return found


def chance_level(kind: Kind, examples: Sequence[Example]) -> float | None:
    """Expected accuracy of a random choice of class; None where there are no classes."""
    if kind != "classification":
        return None
    return sum(1 / len(example.continuations) for example in examples) / len(examples)


def _first_largest(values: Sequence[float]) -> int:
    key: Callable[[int], float] = values.__getitem__
    return max(range(len(values)), key=key)


def _log_sum_exp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))
