"""Verdicts on trends over size, on cases computed by hand and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gaguide.study.scaling import Trend, decide, fit_trend

PARAMETERS = [10**6, 10**7, 10**8, 10**9]


def verdict(trend: Trend, better: str = "high") -> str:
    return decide([trend], [better])[0].verdict  # type: ignore[list-item]


def seeds(means: list[float], noise: float = 0.01) -> tuple[list[int], list[float]]:
    """Three seeds a size, at the mean and `noise` to both sides."""
    scores = [mean + shift for mean in means for shift in (-noise, 0.0, noise)]
    return [size for size in PARAMETERS for _ in range(3)], scores


def test_the_line_is_that_of_the_textbook() -> None:
    # Scores 1, 2, 2, 3 at decades 6 … 9: slope 0.6, residuals −0.1 0.3 −0.3 0.1, so s² = 0.2 / 2, the slope's
    # error √(0.1 / 5), t = 0.6 / 0.141421 = 4.242641 with 2 degrees of freedom, p = 0.0513167.
    trend = fit_trend(PARAMETERS, [1.0, 2.0, 2.0, 3.0], "high")
    assert trend.slope == pytest.approx(0.6)
    assert trend.p_slope == pytest.approx(0.0513167, abs=1e-6)
    half = 4.302653 * math.sqrt(0.1 / 5)
    assert (trend.low, trend.high) == pytest.approx((0.6 - half, 0.6 + half), abs=1e-5)


@pytest.mark.parametrize(
    ("means", "for_accuracy", "for_loss"),
    [
        ([0.2, 0.4, 0.6, 0.8], "positive", "inverse"),
        ([0.8, 0.6, 0.4, 0.2], "inverse", "positive"),
        ([0.8, 0.3, 0.3, 0.8], "U-shaped", "inverted U"),
        ([0.2, 0.6, 0.6, 0.2], "inverted U", "U-shaped"),
        ([0.5, 0.5, 0.5, 0.5], "flat", "flat"),
        ([0.2, 0.6, 0.75, 0.8], "positive", "inverse"),  # bends, but does not turn
    ],
)
def test_verdicts(means: list[float], for_accuracy: str, for_loss: str) -> None:
    assert verdict(fit_trend(*seeds(means), "high")) == for_accuracy
    assert verdict(fit_trend(*seeds(means), "low"), "low") == for_loss


def test_the_bend_is_tested_at_both_ends() -> None:
    trend = fit_trend(*seeds([0.8, 0.3, 0.3, 0.8]), "high")
    assert trend.bend == "U-shaped" and trend.p_bend is not None and trend.p_bend < 1e-6
    assert trend.turning_point == pytest.approx(10**7.5)
    # By hand, one seed: at −1.5 −0.5 0.5 1.5 the scores 3 1 1 2 give 1 − 0.3 x + 0.75 (x² − 0.25),
    # residuals ±0.05 × (1, −3, 3, −1), s² = 0.05 with one degree of freedom. Slopes at the ends −2.55 and
    # 1.95, each with variance 0.05 (1/5 + 9/4) = 0.1225 (Σx² = 5, Σ(x² − 1.25)² = 4), so the smaller t is
    # 1.95 / 0.35 = 5.571, one-sided p = 0.056531, doubled 0.113061.
    assert fit_trend(PARAMETERS, [3.0, 1.0, 1.0, 2.0], "high").p_bend == pytest.approx(0.113061, abs=1e-5)


def test_noise_hides_a_trend_and_correction_counts_the_tasks() -> None:
    assert verdict(fit_trend(*seeds([0.50, 0.51, 0.50, 0.52], noise=0.1), "high")) == "flat"
    weak = Trend(slope=0.1, p_slope=0.02)
    assert decide([weak], ["high"])[0].verdict == "positive"
    assert [one.verdict for one in decide([weak] * 3, ["high"] * 3)] == ["flat"] * 3


def test_two_sizes_are_not_enough_and_three_show_no_bend() -> None:
    assert verdict(fit_trend([10**6, 10**7], [0.2, 0.8], "high")) == "not enough sizes"
    three = fit_trend([10**6] * 2 + [10**7] * 2 + [10**8] * 2, [0.8, 0.81, 0.2, 0.21, 0.8, 0.81], "high")
    assert three.p_bend is None and verdict(three) == "flat"


def test_scores_that_never_move_are_flat() -> None:
    trend = fit_trend(PARAMETERS, [0.4567] * 4, "high")
    assert verdict(trend) == "flat" and (trend.low, trend.high) == (None, None)


def test_one_seed_is_tested_over_examples() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(300)
    answers = {size: (hard < 0.3 + 0.15 * at).astype(float) for at, size in enumerate(PARAMETERS)}
    parameters = [size for size in PARAMETERS for _ in range(300)]
    scores = np.concatenate([answers[size] for size in PARAMETERS])
    trend = fit_trend(parameters, scores.tolist(), "high", clusters=list(range(300)) * 4)
    assert verdict(trend) == "positive"
    assert trend.slope == pytest.approx(0.15, abs=0.03)
    # Examples are clusters: differences in difficulty do not add noise to the slope.
    blind = fit_trend(parameters, scores.tolist(), "high", clusters=list(range(1200)))
    assert trend.high - trend.low < blind.high - blind.low  # type: ignore[operator]


def test_clustered_errors_are_those_of_the_textbook() -> None:
    # Three examples at three sizes, clustered by example. x = −1, 0, 1, slope Σxy/Σx² with Σx² = 6; of each
    # example the sum of x × residual; their squares × G/(G − 1) × (N − 1)/(N − K), here 3/2 × 8/7; t with
    # G − 1 = 2 degrees of freedom.
    answers = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])  # a row for each example
    slope = float((answers * [-1, 0, 1]).sum()) / 6
    residuals = answers - answers.mean() - slope * np.array([-1, 0, 1])
    error = math.sqrt(((residuals * [-1, 0, 1]).sum(1) ** 2).sum() * 1.5 * 8 / 7) / 6
    sizes = [10**6, 10**7, 10**8] * 3
    trend = fit_trend(
        sizes, answers.ravel().tolist(), "high", clusters=[at for at in range(3) for _ in "abc"]
    )
    assert trend.slope == pytest.approx(slope) == pytest.approx(1 / 3)
    assert trend.low == pytest.approx(slope - 4.302653 * error, abs=1e-5)


def test_chance_is_mostly_called_flat() -> None:
    rng = np.random.default_rng(2)
    called = [verdict(fit_trend(*_noise(rng), "high")) for _ in range(100)]
    assert called.count("flat") >= 83  # two tests at 0.05 and 0.05: 10 in expectation, 3 of deviation
    assert called.count("U-shaped") + called.count("inverted U") <= 11


def _noise(rng: np.random.Generator) -> tuple[list[int], list[float]]:
    return [size for size in PARAMETERS for _ in range(3)], rng.normal(0.5, 0.05, 12).tolist()


def test_losses_per_token_count_each_text_with_its_tokens() -> None:
    """The slope is that of the means that the tables show, its error the sandwich over texts."""
    rng = np.random.default_rng(1)
    tokens = np.array([1.0, 50.0, 4.0, 10.0, 20.0, 7.0, 30.0, 3.0])
    losses = (
        3 + rng.normal(0, 0.3, (len(PARAMETERS), len(tokens))) + np.arange(4)[:, None] * (tokens > 9) * 0.2
    )
    x = np.log10(PARAMETERS)
    rows = [(size, at) for size in range(4) for at in range(len(tokens))]
    trend = fit_trend(
        [PARAMETERS[size] for size, _ in rows], [losses[row] for row in rows], "low", [at for _, at in rows],
        [tokens[at] for _, at in rows],
    )  # fmt: skip
    assert trend.slope == pytest.approx(np.polyfit(x, losses @ tokens / tokens.sum(), 1)[0])
    unweighted = fit_trend([PARAMETERS[size] for size, _ in rows], [losses[row] for row in rows], "low")
    assert unweighted.slope != pytest.approx(trend.slope, rel=0.05)
    design = np.array([[1.0, x[size]] for size, _ in rows])
    w = np.array([tokens[at] for _, at in rows])
    bread = np.linalg.inv(design.T @ (design * w[:, None]))
    y = np.array([losses[row] for row in rows])
    scores = design * (w * (y - design @ (bread @ design.T @ (w * y))))[:, None]
    by_text = np.array([scores[[own == at for _, own in rows]].sum(0) for at in range(len(tokens))])
    n, texts = len(rows), len(tokens)
    meat = by_text.T @ by_text * texts / (texts - 1) * (n - 1) / (n - 2)
    error = math.sqrt((bread @ meat @ bread)[1, 1])
    assert trend.high is not None and trend.slope is not None
    assert trend.high - trend.slope == pytest.approx(error * float(stats.t.ppf(0.975, texts - 1)))
