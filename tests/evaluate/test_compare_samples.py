"""`gaguide eval compare`: samples of lm-evaluation-harness by hand, and evaluations that match in part."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gaguide.evaluate.compare.comparison import CompareOptions, compare_evaluations
from gaguide.evaluate.compare.harness_samples import read_samples
from gaguide.evaluate.compare.sources import Evaluation
from gaguide.evaluate.results.outcomes import TaskExamples
from tests.evaluate.comparing import compare, find_test


def _sample(doc_id: int, scores: list[object], **more: object) -> dict:
    requests = {
        f"gen_args_{at}": {"arg_0": f"Q{doc_id}", "arg_1": text} for at, text in enumerate((" a", " b"))
    }
    return {
        "doc_id": doc_id, "doc": {}, "target": "0", "arguments": requests, "filter": "none",
        "metrics": ["acc"], "acc": 1.0, "filtered_resps": [[str(one), "False"] for one in scores],
    } | more  # fmt: skip


def _samples(path: Path, *samples: dict) -> TaskExamples:
    path.write_text("".join(json.dumps(one) + "\n" for one in samples))
    return read_samples(path, "task").examples


def test_samples_that_are_not_finite_have_no_outcome(tmp_path: Path) -> None:
    path = tmp_path / "samples_quiz_2026-11-29T00-00-00.000000.jsonl"
    found = _samples(path, _sample(0, [-1.0, -2.0]), _sample(1, ["nan", "nan"]))
    assert found.outcomes["acc"][0] == 1.0 and math.isnan(found.outcomes["acc"][1])
    assert found.outcomes["class_loss"][0] == pytest.approx(math.log(1 + math.exp(-1)))
    assert found.predictions == (" a", None)
    (tmp_path / "other").mkdir()
    _samples(tmp_path / "other" / path.name, _sample(0, [-2.0, -1.0], acc=0.0), _sample(1, [-1.0, -2.0]))
    acc = find_test(compare(path, tmp_path / "other"), "quiz", "acc")
    assert (acc.count, acc.left_out, acc.gained, acc.lost) == (1, 1, 0, 1)


def test_constant_answers_in_samples_are_named(tmp_path: Path) -> None:
    path = tmp_path / "samples_quiz_2026-11-29T00-00-00.000000.jsonl"
    rows = [_sample(at, [-1.0, -2.0], target=str(at % 2), acc=1.0 - at % 2) for at in range(20)]
    _samples(path, *rows)
    found = read_samples(path, "quiz")
    assert found.doubts == {"acc": "constant"}
    assert "the answer ' a' is chosen in 20 of 20 examples, and right in 50.0%" in found.warnings[0]
    mixed = [_sample(at, [-1.0, -2.0 + 2 * (at % 2)], target=str(at % 2)) for at in range(20)]
    _samples(path, *mixed)
    assert read_samples(path, "quiz").doubts == {}


def test_further_filters_have_their_own_metrics(tmp_path: Path) -> None:
    path = tmp_path / "samples_gen_2026-11-29T00-00-00.000000.jsonl"
    one = {"metrics": ["exact_match"], "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": {"until": []}}},
           "target": "4"}  # fmt: skip
    strict = _sample(0, [], **one, exact_match=0.0, filter="strict", filtered_resps=["[invalid]"])
    loose = _sample(0, [], **one, exact_match=1.0, filter="flexible", filtered_resps=["4"])
    found = _samples(path, strict, loose)
    assert {name: value.tolist() for name, value in found.outcomes.items()} == {
        "exact_match": [0.0], "exact_match,flexible": [1.0],
    }  # fmt: skip
    assert (found.ids, found.answers, found.predictions) == (("0",), ("4",), ("[invalid]",))


def test_documents_are_weighed_by_their_words_and_bytes(tmp_path: Path) -> None:
    def document(at: int, nats: float, words: int) -> dict:
        values = {"word_perplexity": [-nats, words], "bits_per_byte": [-nats, 5 * words]}
        return {"doc_id": at, "doc": {}, "target": "", "arguments": {"gen_args_0": {"arg_0": f"text {at}"}},
                "filtered_resps": [str(-nats)], "metrics": list(values), **values}  # fmt: skip

    for name, losses in (("first", (10.0, 300.0, 7.0)), ("second", (20.0, 200.0, 7.0))):
        (tmp_path / name).mkdir()
        rows = [document(at, nats, 10**at) for at, nats in enumerate(losses)]
        _samples(tmp_path / name / "samples_docs_2026-11-29T00-00-00.000000.jsonl", *rows)
    found = find_test(compare(tmp_path / "first", tmp_path / "second"), "docs", "bits_per_byte")
    assert found.baseline_value == pytest.approx(317 / 555 / math.log(2))
    assert found.difference == pytest.approx((10 - 100) / 555 / math.log(2))
    assert (found.better, found.test) == ("low", "bootstrap")


def test_all_right_in_a_group_is_a_metric_over_groups(tmp_path: Path) -> None:
    for name, right in (("first", (1, 1, 1, 0, 0, 1)), ("second", (1, 0, 1, 1, 1, 1))):
        (tmp_path / name).mkdir()
        rows = [
            _sample(at, [-1, -2], acc=float(value), doc={"set": at // 2}) for at, value in enumerate(right)
        ]
        path = tmp_path / name / "samples_sets_2026-11-29T00-00-00.000000.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    compared = compare(tmp_path / "first", tmp_path / "second", group="set")
    found = find_test(compared, "sets", "group_acc")
    assert (found.count, found.baseline_value, found.value) == (3, 1 / 3, 2 / 3)
    assert (found.gained, found.lost, found.is_main) == (2, 1, False)


def test_losses_per_token_of_two_tokenizers_are_not_compared() -> None:
    """A text without a token near a cue in one tokenizer has no loss there, and certainly not 0."""

    def one(name: str, near: tuple[float, ...], tokens: tuple[float, ...]) -> Evaluation:
        outcomes = {"near_cue_loss": np.asarray(near), "bits_per_byte": np.asarray([1.0, 2.0, near[0]])}
        weights = {"near_cue_loss": np.asarray(tokens), "bits_per_byte": np.asarray([9.0, 8.0, 7.0])}
        ids = ("a", "b", "c")
        examples = TaskExamples(ids, ids, ids, outcomes, None, weights, (None,) * 3, (None,) * 3)
        return Evaluation(name, Path(name), name, {"text": examples}, {"text": "near_cue_loss"})

    first, same = one("first", (2.0, 3.0, 1.0), (4, 4, 2)), one("same", (1.0, 2.5, 1.0), (4, 4, 2))
    other = one("other", (1.0, 0.0, 1.0), (3, 0, 2))
    compared = compare_evaluations([first, same, other], CompareOptions())
    assert [(test.evaluation, test.metric) for test in compared.tests] == [
        ("same", "near_cue_loss"), ("same", "bits_per_byte"), ("other", "bits_per_byte"),
    ]  # fmt: skip
    (note,) = compared.notes
    assert note.startswith("other against first, text: near_cue_loss not compared") and "tokenizer" in note


def test_a_group_that_one_side_was_asked_in_part_is_not_wholly_right() -> None:
    def one(name: str, ids: tuple[str, ...], right: tuple[float, ...]) -> Evaluation:
        groups, nothing = tuple(f"group {own[0]}" for own in ids), (None,) * len(ids)
        examples = TaskExamples(ids, ids, ids, {"acc": np.asarray(right)}, groups, {}, nothing, nothing)
        return Evaluation(name, Path(name), name, {"sets": examples}, {"sets": "acc"})

    before = one("before", ("a1", "b1", "b2"), (1.0, 1.0, 0.0))
    now = one("now", ("a1", "a2", "b1", "b2"), (1.0, 0.0, 1.0, 1.0))
    compared = compare_evaluations([before, now], CompareOptions())
    acc, whole = (find_test(compared, "sets", metric) for metric in ("acc", "group_acc"))
    assert (acc.count, acc.left_out) == (3, 0)
    assert (whole.count, whole.left_out, whole.value, whole.baseline_value) == (1, 1, 1.0, 0.0)
