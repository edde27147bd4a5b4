"""From losses by block to tests and verdicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from gaguide.ablate.effects import MeasuredModel, head_records, together_effects
from gaguide.ablate.meter import Reading
from gaguide.ablate.records import Effect
from gaguide.ablate.subjects import Subject
from gaguide.ablate.text import TextSums
from gaguide.guidance import TokenSet
from gaguide.guidance.cues import BANDS
from gaguide.stats.paired import holm, rate_change

WORDS = TokenSet("words", frozenset({5}))
N, K = 30, len(BANDS)
SUBJECTS = [
    Subject(0, 0, "guided", WORDS, ((0, 2),)),
    Subject(0, 1, "guided", WORDS, ((0, 3),)),
    Subject(0, 2, "control", WORDS),
    Subject(0, 3, "control", WORDS),
    Subject(1, 0, "guided", WORDS),
]


def reading(mass: np.ndarray) -> Reading:
    ones = torch.ones(N, dtype=torch.float64)
    return Reading(torch.from_numpy(mass) * 20, ones * 20, ones, ones * 4, ones * 50, 50)


def text_sums(rises: dict[tuple[int, int], float], masses: dict[tuple[int, int], float]) -> TextSums:
    rng = np.random.default_rng(0)
    tokens = np.tile([2, 6, 12, 30], (N, 1))
    change = {
        (key, "mean"): (rise + 0.01 * rng.standard_normal((N, 1))) * tokens for key, rise in rises.items()
    }
    readings = {key: reading(mass + 0.01 * rng.standard_normal(N)) for key, mass in masses.items()}
    all_at_once = {
        ("guided", "mean"): sum(change[key, "mean"] for key in ((0, 0), (0, 1), (1, 0))),
        ("controls", "mean"): sum(change[key, "mean"] for key in ((0, 2), (0, 3))),
    }
    return TextSums(
        {id(WORDS): tokens * 3.0}, {id(WORDS): tokens}, change, all_at_once, tokens, readings, {}, 1
    )


RISES = {(0, 0): 0.05, (0, 1): -0.05, (0, 2): 0.02, (0, 3): 0.0, (1, 0): 0.0}
MASSES = dict.fromkeys(RISES, 0.1) | {(0, 0): 0.9, (0, 1): 0.02}


def measured(rises=RISES, first=None, before=None) -> MeasuredModel:
    return MeasuredModel(SUBJECTS, ["mean"], text_sums(rises, MASSES), {}, before, first)


def test_verdicts_say_moved_and_used_each_by_its_own_test() -> None:
    rng = np.random.default_rng(3)
    before = {key: reading(0.1 + 0.01 * rng.standard_normal(N)) for key in RISES}
    first, second, *_, last = head_records(measured(before=before), "mean")
    assert first.verdict == "attention moved, used"
    assert second.verdict == "attention moved away, harmful"
    assert last.verdict == "attention not moved, not used"
    assert first.attention == pytest.approx(0.9, abs=0.01) and first.attention_before == pytest.approx(
        0.1, abs=0.01
    )
    assert first.target_norm == pytest.approx(1 / 20) and first.output_norm == pytest.approx(1.0)
    assert {head.verdict for head in head_records(measured(), "mean") if head.role == "guided"} == {
        "attention not compared, used", "attention not compared, harmful", "attention not compared, not used",
    }  # fmt: skip


def test_effects_are_those_of_a_t_test_and_corrected_over_the_guided_heads() -> None:
    heads = {(head.layer, head.head): head for head in head_records(measured(), "mean")}
    sums = text_sums(RISES, MASSES)
    guided = [(0, 0), (0, 1), (1, 0)]
    want = [stats.ttest_1samp(sums.change[key, "mean"].sum(1) / 50, 0) for key in guided]
    for key, test, corrected in zip(guided, want, holm([float(one.pvalue) for one in want]), strict=True):
        loss = heads[key].methods["mean"].loss
        low, high = test.confidence_interval()
        assert (loss.difference, loss.low, loss.high) == pytest.approx(
            (sums.change[key, "mean"].sum() / (50 * N), low, high)
        )
        assert loss.p == pytest.approx(float(test.pvalue)) and loss.p_holm == pytest.approx(corrected)
        assert loss.count == 50 * N
    assert heads[0, 2].methods["mean"].loss.p_holm is None
    over = heads[0, 0].methods["mean"].over_controls
    assert over is not None and over.difference == pytest.approx(0.03, abs=0.01)
    assert heads[1, 0].methods["mean"].over_controls is None


def test_each_way_of_removing_is_corrected_over_the_guided_heads() -> None:
    sums = text_sums(RISES, MASSES)
    change = sums.change | {(key, "zero"): 2 * value for (key, _), value in sums.change.items()}
    both = MeasuredModel(SUBJECTS, ["mean", "zero"], replace(sums, change=change), {}, None, None)
    guided = [head.methods for head in head_records(both, "mean") if head.role == "guided"]
    for name in ("mean", "zero"):
        ps = [methods[name].loss.p for methods in guided]
        assert [methods[name].loss.p_holm for methods in guided] == holm(ps)


def test_the_same_head_of_the_first_model_is_compared_on_the_same_blocks() -> None:
    other = text_sums(dict.fromkeys(RISES, 0.0), MASSES)  # the same noise: only the planted effects differ
    (first, *_) = head_records(measured(first=other), "mean")
    over = first.methods["mean"].over_first
    assert over is not None and over.difference == pytest.approx(0.05) and over.p == 2.0 ** (1 - N)
    everything = together_effects(measured(first=other))["mean"]
    assert everything.over_first is not None
    assert everything.over_first.difference == pytest.approx(0.0, abs=1e-9)
    assert everything.over_controls is not None


def test_a_loss_that_is_not_finite_has_no_effect_and_no_verdict() -> None:
    broken = measured()
    assert broken.text is not None
    broken.text.change[(0, 0), "mean"][3, 1] = np.nan
    first = head_records(broken, "mean")[0]
    assert first.methods["mean"].loss == Effect(None, count=50 * N)
    assert first.used == "not measured"
    assert first.methods["mean"].bands["rest"].difference is not None


def test_rate_change_by_hand() -> None:
    found = rate_change([1.0, 3.0, 2.0, 0.0], [2, 4, 4, 0])
    residuals = np.array([1, 3, 2]) - 0.6 * np.array([2, 4, 4])
    error = np.sqrt(3 / 2 * (residuals**2).sum()) / 10
    assert found.difference == pytest.approx(0.6)
    assert found.p == pytest.approx(2 * stats.t.sf(0.6 / error, 2))
    assert found.low == pytest.approx(0.6 - stats.t.ppf(0.975, 2) * error)
    grouped = rate_change([1.0, 3.0, 2.0, 5.0], [2, 4, 4, 3], ["a", "a", "b", "c"])
    assert grouped == rate_change([4.0, 2.0, 5.0], [6, 4, 3])
    assert rate_change([1.0, 2.0], [1, 2]).p == 0.5 and rate_change([1.0], [2]).low is None
    with pytest.raises(ValueError, match="no count"):
        rate_change([1.0], [0])
    tiny = rate_change((0.1 + 0.001 * np.random.default_rng(0).standard_normal(64)).tolist(), [1] * 64)
    assert tiny.p is not None and tiny.p < 1e-10  # a correction over hundreds of heads leaves it significant
