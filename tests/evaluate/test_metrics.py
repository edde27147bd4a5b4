"""Metrics compared with values worked out by hand, by other formulas, or by statsmodels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from gaguide.evaluate.results.intervals import Metric, mean, perplexity, proportion, rate
from gaguide.evaluate.results.metrics import ScoredExample, chance_level, score_example, summarize
from gaguide.evaluate.tasks.example import Example


def _choice(answer: int, *classes: str) -> Example:
    return Example("0", ("prompt",), classes, answer)


def test_accuracy_takes_the_first_of_equals_and_acc_norm_counts_characters() -> None:
    tie = score_example("classification", _choice(1, " a", " b"), [-1.0, -1.0], [1, 1])
    assert (tie.predicted, tie.correct, tie.margin) == (0, False, 0.0)
    long = score_example("classification", _choice(1, " a", " abcdefg"), [-2.0, -4.0], [1, 2])
    assert (long.predicted, long.predicted_norm) == (0, 1)
    metrics = summarize("classification", [tie, long])
    assert (metrics["acc"].value, metrics["acc_norm"].value) == (0.0, 0.5)


def test_acc_norm_does_not_count_the_delimiter() -> None:
    example = Example("0", ("prompt",), (" = a", " = bcd"), 1, delimiter=" = ")
    scored = score_example("classification", example, [-2.0, -5.4], [1, 2])  # 2 against 1.8 a character
    assert (scored.predicted, scored.predicted_norm) == (0, 1)


def test_class_loss_is_the_cross_entropy_over_the_classes() -> None:
    scored = score_example("classification", _choice(0, "a", "b"), [math.log(0.03), math.log(0.01)], [1, 1])
    assert scored.value == pytest.approx(-math.log(0.75))


def test_very_small_probabilities_do_not_underflow() -> None:
    scored = score_example("classification", _choice(0, "a", "b"), [-2000.0, -2001.0], [1, 1])
    assert scored.value == pytest.approx(math.log1p(math.exp(-1)))


def test_log_odds_are_signed_by_the_answer_unless_absolute() -> None:
    values = [-1.0, -3.0, -2.0, -1.0]  # +2 with the prompt, −1 with the other
    prompts, classes = ("prompt", "other"), (" Yes", " No")
    for kind, answer, wanted in [("logodds", 0, 3.0), ("logodds", 1, -3.0), ("absolute_logodds", 1, 3.0)]:
        scored = score_example(kind, Example("0", prompts, classes, answer), values, [1] * 4)
        assert scored.value == pytest.approx(wanted)
        assert scored.correct is None


def test_perplexity_is_per_token() -> None:
    assert perplexity([2.0, 4.0], [1, 2]).value == pytest.approx(math.exp(2))
    assert perplexity([2.0, 4.0], [1, 2]).stderr == pytest.approx(0.0)


def test_the_wilson_interval_of_a_textbook_case() -> None:
    found = proportion([True] * 8 + [False] * 2)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert found.stderr == pytest.approx(math.sqrt(0.8 * 0.2 / 9))


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_the_wilson_interval_contains_the_share_and_equals_that_of_statsmodels(hits: list[bool]) -> None:
    found = proportion(hits)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    wanted = proportion_confint(sum(hits), len(hits), method="wilson")
    assert (found.low, found.high) == pytest.approx(wanted, abs=1e-12)


def test_one_example_has_no_standard_error() -> None:
    assert math.isnan(mean([1.0]).stderr)


def test_no_spread_says_nothing_of_other_examples() -> None:
    for found in (mean([2.0, 2.0, 2.0]), rate([1.0, 2.0], [1, 2]), perplexity([3.0], [2]), mean([0.0, 0.0])):
        assert math.isnan(found.low) and math.isnan(found.high)


def test_texts_without_a_token_of_a_band_are_no_units() -> None:
    sparse = rate([1.0, 0.0, 4.0, 0.0, 0.0], [1, 0, 2, 0, 0], ["a", "b", "c", "d", "e"])
    dense = rate([1.0, 4.0], [1, 2])
    assert (sparse.value, sparse.low, sparse.high) == pytest.approx((dense.value, dense.low, dense.high))


def test_chance_is_the_accuracy_of_a_random_choice() -> None:
    examples = [_choice(0, "a", "b"), _choice(0, "a", "b", "c", "d")]
    assert chance_level("classification", examples) == pytest.approx(0.375)
    assert chance_level("sequence_prob", examples) is None
    several = replace(examples[1], other_answers=(2,))
    assert chance_level("classification", [several]) == 0.5


def _pairs(right: list[tuple[bool, bool]]) -> dict[str, Metric]:
    """Metrics of minimal pairs, given which of their two examples are right."""
    scored = [
        score_example("classification", replace(_choice(0, " a", " b"), id=f"{at}{nth}", group=f"pair {at}"),
                      (-1.0, -2.0) if hit else (-2.0, -1.0), [1, 1])
        for at, pair in enumerate(right) for nth, hit in enumerate(pair)
    ]  # fmt: skip
    return summarize("classification", scored)


def test_all_of_a_group_right_counts_groups() -> None:
    metrics = _pairs([(True, True)] * 3 + [(True, False)] * 4 + [(False, False)])
    assert metrics["acc"].value == 10 / 16
    assert metrics["group_acc"] == proportion([True] * 3 + [False] * 5)
    assert "group_acc" not in summarize("classification", [_scored_alone()])


def _scored_alone() -> ScoredExample:
    return score_example("classification", _choice(0, " a", " b"), [-1.0, -2.0], [1, 1])


def test_intervals_of_groups_are_as_wide_as_groups_are_few() -> None:
    same = _pairs([(True, True)] * 60 + [(False, False)] * 20)["acc"]  # 80 answers, each given twice
    once = proportion([True] * 60 + [False] * 20)
    twice = proportion([True] * 120 + [False] * 40)
    assert same.stderr == twice.stderr  # lm-evaluation-harness's
    assert (same.low, same.high) == pytest.approx((once.low, once.high), abs=2e-3)
    assert same.low < twice.low and twice.high < same.high
    opposite = _pairs([(True, False)] * 20)["acc"]  # as a constant answer gives: no evidence of precision
    alone = proportion([True, False] * 20)
    assert opposite.low < alone.low and alone.high < opposite.high < alone.high + 0.01
    assert _pairs([(True, True)] * 20)["acc"].low == proportion([True] * 20).low


def test_the_interval_of_a_mean_over_groups_by_hand() -> None:
    # Groups with sums 2, 6 and 1 of 2, 2 and 1 values; mean 9/5. Deviations from mean × size: -1.6, 2.4,
    # -0.8, squares 8.96; / (3 · 2) = 1.4933; √ / (5/3) = 0.7332; Student's 4.30 of them.
    found = mean([1.0, 1.0, 3.0, 3.0, 1.0], ["a", "a", "b", "b", "c"])
    assert found.value == 1.8 and found.high - found.value == pytest.approx(4.302653 * 0.733212, rel=1e-5)
