"""Constant answers are recognized and said wherever an accuracy stands; agreement and calibration."""

from __future__ import annotations

import csv
import json
import math
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gaguide.distributed import World
from gaguide.evaluate import EvaluateSettings, evaluate
from gaguide.evaluate.results.agreement import balanced_accuracy, brier, calibration_error, matthews
from gaguide.evaluate.results.answers import class_answers, entropy, uninformative
from gaguide.evaluate.results.intervals import proportion
from gaguide.evaluate.results.markdown import results_markdown
from gaguide.evaluate.results.metric_names import MARK_NOTES
from gaguide.evaluate.results.metrics import find_uninformative, score_example, score_number, summarize
from gaguide.evaluate.results.table import print_table
from gaguide.evaluate.tasks.example import Example
from tests.support.pretrained import FOLDER_VARIABLE

_SCONE = Path(__file__).parents[3] / "shared/data/negation/scone_nli"
_YES_NO = (" Yes", " No")


def _example(at: int, classes: tuple[str, ...], answer: int) -> Example:
    return Example(str(at), (f"prompt {at}",), classes, answer)


def _scored(chosen: list[int], answers: list[int], classes: tuple[str, ...] = _YES_NO):
    return [
        score_example(
            "classification", _example(at, classes, answer),
            [-1.0 if place == one else -3.0 for place in range(len(classes))], [1] * len(classes),
        )
        for at, (one, answer) in enumerate(zip(chosen, answers, strict=True))
    ]  # fmt: skip


def test_a_constant_answer_is_said_with_its_numbers() -> None:
    scored = [
        replace(one, example=replace(one.example, group=str(at // 2)))
        for at, one in enumerate(_scored([1] * 240, [0, 1] * 120))
    ]
    metrics = summarize("classification", scored)
    found = find_uninformative(metrics, scored)
    assert metrics["acc"].value == 0.5
    assert found["acc"].reason == "constant"
    assert metrics["group_acc"].value == 0 and found["group_acc"] == found["acc"]
    assert found["acc"].why == "the answer ' No' is chosen in 240 of 240 examples, and right in 50.0%"
    assert metrics["balanced_acc"].value == 0.5 and metrics["matthews"].value == 0.0


@pytest.mark.parametrize(("others", "reason"), [(5, "constant"), (6, None)])
def test_constant_begins_at_95_percent(others: int, reason: str | None) -> None:
    answers = [0] * others + [1] * (100 - others)
    pattern = class_answers([_example(at, _YES_NO, one) for at, one in enumerate(answers)], answers)
    found = uninformative(pattern, proportion([True] * 100))
    assert (found.reason if found else None) == reason


def test_a_constant_position_is_found_where_texts_vary() -> None:
    examples = [_example(at, (f" a{at}", f" b{at}"), at % 2) for at in range(20)]
    found = uninformative(class_answers(examples, [0] * 20), proportion([True, False] * 10))
    assert found is not None and "position 0 is chosen in 20 of 20" in found.why
    # Shuffled classes: the text is constant, the position is not.
    shuffled = [_example(at, _YES_NO if at % 2 else _YES_NO[::-1], 0) for at in range(20)]
    found = uninformative(
        class_answers(shuffled, [at % 2 for at in range(20)]), proportion([True, False] * 10)
    )
    assert found is not None and "the answer ' No' is chosen in 20 of 20" in found.why


def test_not_better_than_the_most_frequent_answer_is_said_and_better_is_not() -> None:
    answers = [0] * 70 + [1] * 30
    examples = [_example(at, _YES_NO, one) for at, one in enumerate(answers)]
    wrong_in = {78: 22, 90: 10}  # right answers of 100 → wrong ones
    for right, wrong in wrong_in.items():
        chosen = [1 - one if at % 100 < wrong else one for at, one in enumerate(answers)]
        found = uninformative(class_answers(examples, chosen), proportion([True] * right + [False] * wrong))
        assert (found is None) == (right == 90)
    assert (
        "always giving the answer ' Yes' is right in 70.0%"
        in uninformative(  # type: ignore[union-attr]
            class_answers(examples, [0] * 50 + [1] * 50), proportion([True] * 78 + [False] * 22)
        ).why
    )


def test_too_few_examples_say_nothing_and_classes_in_prompts_have_no_texts() -> None:
    few = [_example(at, _YES_NO, 0) for at in range(9)]
    assert uninformative(class_answers(few, [0] * 9), proportion([True] * 9)) is None
    zipped = [
        Example(str(at), (f"A {at}", f"B {at}"), (" end", " end"), at % 2, is_zipped=True) for at in range(40)
    ]
    right = class_answers(zipped, [at % 2 for at in range(40)])
    assert not right.texts and uninformative(right, proportion([True] * 40)) is None


def test_a_constant_generated_number_is_said() -> None:
    scored = [score_number(Example(str(at), ("p",), (), number=float(at)), " 7") for at in range(20)]
    found = find_uninformative(summarize("numeric", scored), scored)["acc"]
    assert "the answer '7' is chosen in 20 of 20" in found.why


def test_one_of_several_right_answers_is_right() -> None:
    example = replace(_example(0, (" a", " b", " c"), 0), other_answers=(2,))
    pattern = class_answers([example] * 10, [2] * 10)
    assert pattern.labels == ((" c", " c"),) * 10 and pattern.right_positions == {0: 10, 2: 10}


def test_entropy_in_bits() -> None:
    assert entropy({0: 1, 1: 1, 2: 2}) == 1.5
    assert str(entropy({0: 5})) == "0.0"


def test_agreement_by_hand() -> None:
    # Right: 6 a, 2 b, 2 c; hits 5, 1, 0.
    pairs = [("a", "a")] * 5 + [("a", "b")] + [("b", "b"), ("b", "a")] + [("c", "a"), ("c", "b")]
    assert balanced_accuracy(pairs).value == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)
    # Gorodkin: c·s − Σ t·p = 6·10 − (6·7 + 2·3 + 2·0) = 12; √(100−58)(100−44).
    assert matthews(pairs).value == pytest.approx(12 / math.sqrt((100 - 58) * (100 - 44)))
    two = [(1, 1)] * 6 + [(1, 0)] * 2 + [(0, 1)] + [(0, 0)] * 3  # TP 6, FN 2, FP 1, TN 3
    assert matthews(two).value == pytest.approx((6 * 3 - 1 * 2) / math.sqrt(7 * 8 * 4 * 5))


def test_a_constant_answer_has_no_interval_of_width_0() -> None:
    pairs = [("a", "a")] * 6 + [("b", "a")] * 6
    for statistic, value in ((balanced_accuracy, 0.5), (matthews, 0.0)):
        found = statistic(pairs)
        assert found.value == value and math.isnan(found.low) and math.isnan(found.high)


def test_the_jackknife_equals_leaving_each_example_out() -> None:
    rng = random.Random(0)
    pairs = [(rng.randrange(3), rng.randrange(3)) for _ in range(60)]
    for statistic in (balanced_accuracy, matthews):
        left = [statistic(pairs[:at] + pairs[at + 1 :]).value for at in range(60)]
        wanted = math.sqrt(59 / 60 * sum((one - np.mean(left)) ** 2 for one in left))
        assert statistic(pairs).stderr == pytest.approx(wanted)
    # In pairs with the same outcome there is half as much evidence.
    doubled, groups = pairs * 2, list(range(60)) * 2
    wide, narrow = balanced_accuracy(doubled, groups), balanced_accuracy(doubled)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(math.sqrt(2), rel=0.05)


def test_the_mean_of_squares_of_shares_is_that_of_the_harness() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([1, 1, 1], size=50)
    answers = rng.integers(3, size=50).tolist()
    found = brier(shares.tolist(), [[one] for one in answers])
    wanted = metrics.brier_score(list(zip(answers, shares.tolist(), strict=True)))
    assert found.value == pytest.approx(wanted, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    # Bins of 1/15: 0.5 → 7 (3 examples, 2 right); 0.9 → 13 (2 examples, 1 right); 1.0 belongs to the last.
    found = calibration_error([0.5, 0.5, 0.5, 0.9, 0.9, 1.0], [True, True, False, True, False, True])
    assert found.value == pytest.approx((abs(1.5 - 2) + abs(1.8 - 1)) / 6)
    assert found.low <= found.value <= found.high


def test_calibrated_answers_have_a_small_error_and_confident_ones_a_large_one() -> None:
    rng = np.random.default_rng(1)
    confidences = rng.uniform(0.5, 1, 4000)
    hits = rng.uniform(size=4000) < confidences
    assert calibration_error(confidences.tolist(), hits.tolist()).value < 0.03
    assert calibration_error([0.99] * 4000, hits.tolist()).value == pytest.approx(0.24, abs=0.03)


def test_the_interval_of_the_calibration_error_can_hold_0() -> None:
    """Of calibrated models, as percentiles of resampled errors never do; not of too confident ones."""
    rng, held = np.random.default_rng(2), {0.0: 0, 0.2: 0}
    for _ in range(20):
        confidences = rng.uniform(0.55, 0.95, 200)
        for excess in held:
            hits = rng.uniform(size=200) < confidences - excess
            held[excess] += calibration_error(confidences.tolist(), hits.tolist()).low == 0
    assert held[0.0] >= 8 and held[0.2] == 0


def _write(folder: Path, rows: list[dict]) -> Path:
    path = folder / "balanced.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.processes
def test_a_constant_answer_is_said_in_every_file(gpt2_folder: Path, tmp_path: Path) -> None:
    # The first class has a hundred words, so that no model chooses it.
    rows = [
        {"prompt": f"Q {at}", "classes": [" word" * 100, " b"], "answer_index": at % 2} for at in range(20)
    ]
    results = evaluate(
        gpt2_folder, [str(_write(tmp_path, rows))], tmp_path / "out", World(), EvaluateSettings()
    )
    console = Console(record=True, width=200)
    print_table(results, console)
    why = "the answer ' b' is chosen in 20 of 20 examples, and right in 50.0%"
    text = console.export_text()
    assert f"acc 0.5000: measures the data, not the model, since {why}" in text
    assert "0.5000‡" in text and "‡ One answer or position" in text
    found = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]["balanced"]
    assert found["uninformative"]["acc"] == {"reason": "constant", "why": why}
    assert any(why in one for one in found["warnings"])
    assert found["answers"]["texts"]["shares"][0] == {"answer": " b", "chosen": 1.0, "right": 0.5}
    assert (found["answers"]["texts"]["chosen_entropy"], found["answers"]["texts"]["right_entropy"]) == (0, 1)
    markdown = (tmp_path / "out" / "results.md").read_text()
    assert "| 0.5000‡ |" in markdown and why in markdown
    assert markdown.count("‡ One answer") == 1
    harness = json.loads((tmp_path / "out" / "results_lm_eval.json").read_text())
    assert harness["uninformative"]["balanced"]["acc"]["why"] == why


def test_a_footnote_stands_once_below_tasks_and_their_parts() -> None:
    metric = {"value": 0.5, "low": 0.4, "high": 0.6}
    doubt = {"acc": {"reason": "constant", "why": "because"}}
    part = {"count": 5, "metrics": {"acc": metric}, "constant": None, "same_as_original": None}
    task = {"count": 10, "chance": 0.5, "metrics": {"acc": metric}}

    def notes(of_task: dict[str, Any], of_part: dict[str, Any]) -> list[int]:
        parts = {"first": part | {"uninformative": of_part}}
        tasks = {"quiz": task | {"uninformative": of_task, "parts": parts}}
        markdown = results_markdown({"model": "m", "tasks": tasks})
        return [markdown.count(note) for note in MARK_NOTES.values()]

    assert notes(doubt, doubt) == [1, 0]
    assert notes({}, doubt) == [1, 0]
    assert notes(doubt, {}) == [1, 0]
    assert notes({}, {}) == [0, 0]
    assert notes({}, {"other": doubt["acc"]}) == [0, 0]  # of a metric that the table of parts does not show


def test_a_value_without_an_interval_has_none_in_the_tables(gpt2_folder: Path, tmp_path: Path) -> None:
    """Equal losses have no interval; the accuracy of one example has Wilson's."""
    rows = [{"prompt": "A list is", "classes": [" long", " short"], "answer_index": 0}] * 3
    for name, some in (("same", rows), ("one", rows[:1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("same", "one")]
    results = evaluate(str(gpt2_folder), files, tmp_path / "out", World(), EvaluateSettings())
    console = Console(record=True, width=160)
    print_table(results, console)
    one, text = results.tasks["one"].metrics["acc"], console.export_text()
    assert "nan" not in text and f"{one.low:.4f} – {one.high:.4f}" in text
    markdown = (tmp_path / "out" / "results.md").read_text()
    assert "none" not in markdown and f"| {one.low:.4f} – {one.high:.4f} |" in markdown


def _value(row: dict[str, str], column: str) -> str:
    """A column of ScoNe, whose files with a negation call it edited."""
    return row[column] if column in row else row[f"{column}_edited"]


@pytest.mark.slow
@pytest.mark.processes
def test_a_pretrained_model_that_always_answers_no_is_found_out(tmp_path: Path) -> None:
    files = [_SCONE / f"{name}.csv" for name in ("one_scoped", "no_negation", "one_not_scoped")]
    if FOLDER_VARIABLE not in os.environ or not files[0].is_file():
        pytest.skip(f"needs SmolLM2 in {FOLDER_VARIABLE} and ScoNe's files beside the repository ({_SCONE})")
    rows = []
    for path in files:
        with path.open(newline="") as file:
            rows += [
                {
                    "prompt": f"Assume that: {_value(row, 'sentence1')}\nIs it then definitely true that: "
                    f"{_value(row, 'sentence2')} Answer Yes or No.\nAnswer:",
                    "classes": list(_YES_NO),
                    "answer_index": int(_value(row, "gold_label") != "entailment"),
                }
                for row in list(csv.DictReader(file))[:80]
            ]
    (result,) = evaluate(
        os.environ[FOLDER_VARIABLE], [str(_write(tmp_path, rows))], None, World(), EvaluateSettings()
    ).tasks.values()
    found = result.uninformative["acc"]
    assert found.reason == "constant" and found.why.startswith("the answer ' No' is chosen in")
    assert result.metrics["acc"].low < 0.5 < result.metrics["acc"].high  # which looks like a measurement


def test_positions_say_nothing_where_the_right_class_is_always_the_first() -> None:
    examples = [
        Example(str(at), ("",), (f"Nobody {at} ever.", f"Somebody {at} ever."), 0) for at in range(20)
    ]
    pattern = class_answers(examples, [0] * 20)
    assert not pattern.positions and pattern.constant() is None
    assert uninformative(pattern, proportion([True] * 20)) is None
    same = [Example(str(at), (f"{at}?",), (" Yes", " No"), 0) for at in range(20)]
    doubt = uninformative(class_answers(same, [0] * 20), proportion([True] * 20))
    assert doubt is not None and doubt.reason == "constant"
