"""From log-probabilities to metrics with intervals. Pure, without torch.

classification: `acc` takes the most probable class (the first of equals), `acc_norm` divides by the
characters of a class first (without the task's delimiter), `class_loss` is the negative logarithm of the
right class's share among the classes. sequence_prob: `loss` is the mean negative log-likelihood of a
completion, `perplexity` that of a token. logodds kinds: the change in the log-odds of the two classes from
the other prompt to the prompt. numeric: `acc` counts generated numbers that equal the answer, `answered`
texts that contain a number, `abs_error` is the mean distance from the answer. perplexity: `loss` and
`perplexity` of a token of held-out text.

An example whose scores are not all finite (NaN or infinite, as of a model with NaN weights) has no outcome. A
task that contains one has no metrics: a metric over the other examples would be that of a selection which the
model's failure made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gaguide.evaluate.results.numbers import first_number
from gaguide.evaluate.tasks.examples import Example
from gaguide.evaluate.tasks.task import Kind

_Z = 1.959963984540054
"""Quantile of the normal distribution for 95% intervals."""

NEAR_TIE = 2e-4
"""Log-probabilities closer than this may swap places with another order of summation."""


@dataclass(frozen=True)
class Metric:
    """A value with its 95% interval."""

    value: float
    """The estimate."""
    stderr: float
    """Standard error; NaN with a single example."""
    low: float
    """Lower end of the interval; NaN with a single example, but for proportions."""
    high: float
    """Upper end of the interval, likewise."""


NO_METRIC = Metric(math.nan, math.nan, math.nan, math.nan)
"""The metric of a task in which scores are not finite."""


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
    text: str | None = None
    """Kind numeric: the generated text."""
    number: float | None = None
    """Kind numeric: the number in it."""

    @property
    def correct(self) -> bool | None:
        """Whether the most probable class is the answer; None where there are no classes."""
        return None if self.predicted is None else self.predicted == self.example.answer_index

    @property
    def correct_norm(self) -> bool | None:
        """The same with log-probabilities per character."""
        return None if self.predicted_norm is None else self.predicted_norm == self.example.answer_index

    @property
    def correct_number(self) -> bool:
        """Whether the generated number equals the answer."""
        answer = self.example.number
        return self.number is not None and answer is not None and math.isclose(self.number, answer)


def score_example(
    kind: Kind, example: Example, log_probabilities: Sequence[float], target_tokens: Sequence[int]
) -> ScoredExample:
    """The outcome of `example` from the log-probabilities of its pairs, in their order."""
    values, tokens = tuple(log_probabilities), tuple(target_tokens)
    if not all(map(math.isfinite, values)):
        return ScoredExample(example, values, tokens, math.nan, finite=False)
    if kind in ("sequence_prob", "perplexity"):
        return ScoredExample(example, values, tokens, -math.fsum(values))
    if kind != "classification":
        difference = (values[0] - values[1]) - (values[2] - values[3])
        signed = abs(difference) if kind == "absolute_logodds" else difference
        if kind == "logodds" and example.answer_index == 1:
            signed = -difference
        return ScoredExample(example, values, tokens, signed)
    answer = example.answer_index
    assert answer is not None
    lengths = [len(text) - len(example.delimiter) for text in example.continuations]
    per_character = [value / length for value, length in zip(values, lengths, strict=True)]
    others = [value for at, value in enumerate(values) if at != answer]
    return ScoredExample(
        example, values, tokens,
        value=_log_sum_exp(values) - values[answer],
        predicted=_first_largest(values),
        predicted_norm=_first_largest(per_character),
        margin=values[answer] - max(others),
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
    values = [one.value for one in scored]
    if kind == "classification":
        return {
            "acc": proportion([bool(one.correct) for one in scored]),
            "acc_norm": proportion([bool(one.correct_norm) for one in scored]),
            "class_loss": mean(values),
        }
    if kind == "numeric":
        answered = [one for one in scored if one.number is not None]
        return {
            "acc": proportion([one.correct_number for one in scored]),
            "answered": proportion([one.number is not None for one in scored]),
        } | ({"abs_error": mean([one.value for one in answered])} if answered else {})
    if kind == "perplexity":
        tokens = [sum(one.target_tokens) for one in scored]
        return {"loss": rate(values, tokens), "perplexity": perplexity(values, tokens)}
    if kind == "sequence_prob":
        return {
            "loss": mean(values),
            "perplexity": perplexity(values, [one.target_tokens[0] for one in scored]),
        }
    return {kind: mean(values)}


def _metric_names(kind: Kind) -> tuple[str, ...]:
    if kind == "classification":
        return ("acc", "acc_norm", "class_loss")
    if kind == "numeric":
        return ("acc", "answered", "abs_error")
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
            first, second = sorted(one.log_probabilities, reverse=True)[:2]
            if first - second < NEAR_TIE:
                found.append(one.example.id)
    return found


def chance_level(kind: Kind, examples: Sequence[Example]) -> float | None:
    """Expected accuracy of a random choice of class; None where there are no classes."""
    if kind != "classification":
        return None
    return sum(1 / len(example.continuations) for example in examples) / len(examples)


def proportion(hits: Sequence[bool]) -> Metric:
    """Share of hits with Wilson's interval; the standard error is that of lm-evaluation-harness.

    Not statsmodels' `proportion_confint`, whose import alone would take an evaluation one second.
    """
    n, share = len(hits), sum(hits) / len(hits)
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    # At 0 and 1 rounding would leave the share itself outside.
    low, high = min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
    return Metric(share, _standard_error([float(hit) for hit in hits]), low, high)


def mean(values: Sequence[float]) -> Metric:
    """Mean with a normal interval."""
    average, error = math.fsum(values) / len(values), _standard_error(values)
    return Metric(average, error, average - _Z * error, average + _Z * error)


def rate(losses: Sequence[float], tokens: Sequence[int]) -> Metric:
    """Sum of losses divided by sum of tokens; the interval linearizes the ratio over examples."""
    n, value = len(losses), math.fsum(losses) / sum(tokens)
    error = math.nan
    if n > 1:
        squares = math.fsum((loss - value * count) ** 2 for loss, count in zip(losses, tokens, strict=True))
        error = math.sqrt(squares / (n * (n - 1))) / (sum(tokens) / n)
    return Metric(value, error, value - _Z * error, value + _Z * error)


def perplexity(losses: Sequence[float], tokens: Sequence[int]) -> Metric:
    """Exponential of `rate`."""
    loss = rate(losses, tokens)
    value = _exp(loss.value)
    return Metric(value, value * loss.stderr, _exp(loss.low), _exp(loss.high))


def _standard_error(values: Sequence[float]) -> float:
    n = len(values)
    if n < 2:
        return math.nan
    average = math.fsum(values) / n
    return math.sqrt(math.fsum((value - average) ** 2 for value in values) / (n - 1) / n)


def _first_largest(values: Sequence[float]) -> int:
    key: Callable[[int], float] = values.__getitem__
    return max(range(len(values)), key=key)


def _log_sum_exp(values: Sequence[float]) -> float:
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
