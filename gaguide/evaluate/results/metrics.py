"""From log-probabilities to metrics with intervals. Pure, without torch.

classification: `acc` takes the most probable class (the first of equals); `acc_norm` and `acc_bytes` first
divide by the characters and UTF-8 bytes of a class (without the task's delimiter); `acc_mutual_info` first
subtracts the log-probability of the class without a prompt, where that was scored. `class_loss` is the
negative logarithm of the right class's share among the classes; `brier_score` and `ece` compare these shares
with the answers; `balanced_acc` and `matthews` compare the chosen labels with the right ones (`agreement`).
sequence_prob: `loss` is the mean negative log-likelihood of a
completion, `perplexity` that of a token. logodds kinds: the change in the log-odds of the two classes from
the other prompt to the prompt. numeric: `acc` counts generated numbers that equal the answer, `answered`
texts that contain a number, `abs_error` is the mean distance from the answer. perplexity: `loss` and
`perplexity` of a token of held-out text. near_cue: `loss` of a token of text, and of the tokens on a cue,
1 to 5 and 6 to 20 tokens after one, and of the rest. rolling: `word_perplexity`, `byte_perplexity` and
`bits_per_byte` of whole documents.

An example whose scores are not all finite (NaN or infinite, as with NaN weights) has no outcome. A
task that contains one has no metrics: a metric over the other examples would be that of a selection which the
model's failure made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gaguide.evaluate.results.agreement import balanced_accuracy, brier, calibration_error, matthews
from gaguide.evaluate.results.answers import (
    AnswerPattern,
    Uninformative,
    class_answers,
    number_answers,
    uninformative,
)
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
from gaguide.evaluate.results.metric_names import ACCURACIES, CUE_LOSSES, GROUP_ACC
from gaguide.evaluate.results.numbers import first_largest, first_number, log_sum_exp
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.task import Kind
from gaguide.grouping import grouped


@dataclass(frozen=True)
class ScoredExample:
    """The outcome of one example."""

    example: Example
    """The question."""
    log_probabilities: tuple[float, ...]
    """Log-probability of each pair of the example, in their order."""
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
    predicted_bytes: int | None = None
    """Index of the class that is most probable per UTF-8 byte."""
    predicted_mutual_info: int | None = None
    """Index of the class whose log-probability the prompt raises most; None where that was not asked."""
    margin: float | None = None
    """Log-probability of the answer minus that of the best other class."""
    greedy: tuple[bool, ...] = ()
    """Whether each pair's continuation is what greedy decoding gives; () where it was not asked."""
    bands: tuple[str, ...] = ()
    """Kind near_cue: the band of each pair's tokens."""
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

    def chosen(self, accuracy: str) -> int | None:
        """Index of the class that counts for one of `ACCURACIES`."""
        by_name = (self.predicted, self.predicted_norm, self.predicted_bytes, self.predicted_mutual_info)
        return by_name[ACCURACIES.index(accuracy)]

    def is_right(self, accuracy: str) -> bool:
        """Whether that class is an answer; False where nothing was chosen."""
        return self.chosen(accuracy) in self.example.answers

    @property
    def shares(self) -> list[float]:
        """Probability of each class among the classes of the example."""
        given = self.log_probabilities[: len(self.example.continuations)]
        total = log_sum_exp(given)
        return [math.exp(value - total) for value in given]

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
        return ScoredExample(example, values, tokens, math.nan, finite=False, greedy=hits)
    if kind in ("sequence_prob", "perplexity", "rolling", "near_cue"):
        return ScoredExample(example, values, tokens, -math.fsum(values), greedy=hits)
    if kind != "classification":
        difference = (values[0] - values[1]) - (values[2] - values[3])
        signed = abs(difference) if kind == "absolute_logodds" else difference
        if kind == "logodds" and example.answer_index == 1:
            signed = -difference
        return ScoredExample(example, values, tokens, signed)
    given = values[: len(example.continuations)]
    right = [given[at] for at in example.answers]
    texts, alone = example.counted_texts, values[len(example.continuations) :]
    others = [value for at, value in enumerate(given) if at not in example.answers]
    return ScoredExample(
        example, values, tokens,
        value=log_sum_exp(given) - log_sum_exp(right),
        predicted=first_largest(given),
        predicted_norm=first_largest(_per_unit(given, map(len, texts))),
        predicted_bytes=first_largest(_per_unit(given, (len(text.encode("utf-8")) for text in texts))),
        predicted_mutual_info=first_largest([a - b for a, b in zip(given, alone, strict=True)])
        if alone
        else None,
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
        further: tuple[str, ...] = ()
        if kind == "classification" and scored[0].example.unconditional:
            further = ("acc_mutual_info",)
        elif kind == "sequence_prob" and all(one.greedy for one in scored):
            further = ("greedy_acc",)
        return dict.fromkeys(_metric_names(kind) + further, NO_METRIC)
    values, groups = [one.value for one in scored], _clusters(scored)
    if kind == "classification":
        return _summarize_classes(scored, values, groups)
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
    if kind == "near_cue":
        return _summarize_bands(scored, groups)
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


def _summarize_classes(
    scored: Sequence[ScoredExample], values: Sequence[float], groups: Groups
) -> dict[str, Metric]:
    right = [bool(one.correct) for one in scored]
    shares = [one.shares for one in scored]
    pattern = answer_pattern(scored, "acc")
    assert pattern is not None
    asked = [name for name in ACCURACIES if all(one.chosen(name) is not None for one in scored)]
    found = {name: proportion([one.is_right(name) for one in scored], groups) for name in asked}
    return (
        found
        | {"class_loss": mean(values, groups)}
        | _group_accuracy(right, groups)
        | {
            "balanced_acc": balanced_accuracy(pattern.labels, groups),
            "matthews": matthews(pattern.labels, groups),
            "brier_score": brier(shares, [one.example.answers for one in scored], groups),
            "ece": calibration_error([max(own) for own in shares], right, groups),
        }
    )


def band_sums(scored: Sequence[ScoredExample]) -> dict[str, tuple[list[float], list[int]]]:
    """Kind near_cue: each band's losses and tokens of every example; bands without a token are left out."""
    found = {}
    for band in CUE_LOSSES:
        picked = [[at for at, own in enumerate(one.bands) if own == band] for one in scored]
        pairs = list(zip(scored, picked, strict=True))
        tokens = [sum(one.target_tokens[at] for at in places) for one, places in pairs]
        if any(tokens):
            losses = [-math.fsum(one.log_probabilities[at] for at in places) for one, places in pairs]
            found[band] = losses, tokens
    return found


def _summarize_bands(scored: Sequence[ScoredExample], groups: Groups) -> dict[str, Metric]:
    whole = rate([one.value for one in scored], [sum(one.target_tokens) for one in scored], groups)
    by_band = {CUE_LOSSES[band]: rate(*sums, groups) for band, sums in band_sums(scored).items()}
    return {"loss": whole} | by_band


def answer_pattern(scored: Sequence[ScoredExample], accuracy: str) -> AnswerPattern | None:
    """The answers that count for one of `ACCURACIES`; None where the examples have none, or not all do."""
    if all(one.example.number is not None and one.finite for one in scored):
        return number_answers(
            [one.example.number for one in scored if one.example.number is not None],
            [one.number for one in scored],
        )
    chosen = [at for one in scored if (at := one.chosen(accuracy)) is not None]
    return class_answers([one.example for one in scored], chosen) if len(chosen) == len(scored) else None


def find_uninformative(
    metrics: Mapping[str, Metric], scored: Sequence[ScoredExample]
) -> dict[str, Uninformative]:
    """The accuracies among a task's `metrics` that say nothing about the model's answers, and why.

    `group_acc` is among them where the answers of `acc`, which it counts, are constant.
    """
    found = {
        name: uninformative(pattern, metrics[name])
        for name in ACCURACIES
        if name in metrics and (pattern := answer_pattern(scored, name)) is not None
    }
    answers = found.get("acc")
    if answers is not None and answers.reason == "constant" and GROUP_ACC in metrics:
        found[GROUP_ACC] = answers
    return {name: one for name, one in found.items() if one is not None}


def _clusters(scored: Sequence[ScoredExample]) -> Groups:
    return clusters([one.example.id for one in scored], [one.example.group for one in scored])


def _group_accuracy(right: Sequence[bool], groups: Groups) -> dict[str, Metric]:
    """Share of groups in which every answer is right; groups are independent."""
    if groups is None:
        return {}
    return {GROUP_ACC: proportion([all(own) for own in grouped(zip(groups, right, strict=True)).values()])}


def _metric_names(kind: Kind) -> tuple[str, ...]:
    if kind == "classification":
        accuracies = ("acc", "acc_norm", "acc_bytes")
        return (*accuracies, "class_loss", "balanced_acc", "matthews", "brier_score", "ece")
    if kind == "numeric":
        return ("acc", "answered", "abs_error")
    if kind == "near_cue":
        return ("loss", *CUE_LOSSES.values())
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


def chance_level(kind: Kind, examples: Sequence[Example]) -> float | None:
    """Expected accuracy of a random choice of class; None where there are no classes."""
    if kind != "classification":
        return None
    shares = [len(set(example.answers)) / len(example.continuations) for example in examples]
    return sum(shares) / len(examples)


def _per_unit(values: Sequence[float], lengths: Iterable[int]) -> list[float]:
    """Each value divided by a length; minus infinity where that is 0."""
    return [value / length if length else -math.inf for value, length in zip(values, lengths, strict=True)]
