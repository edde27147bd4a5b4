"""A model whose scores are NaN gets no metrics of any kind; examples are counted, the exit code says so."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.distributed import World
from gaguide.errors import EXIT_NOT_FINITE
from gaguide.evaluate import EvaluateSettings, evaluate
from gaguide.evaluate.command import main
from gaguide.evaluate.results.metrics import score_example, summarize
from gaguide.evaluate.tasks.example import Example

_CHOICES = [
    ("Q: capital of France?\nA:", 0),
    ("Q: capital of Italy?\nA:", 1),
    ("Q: capital of Spain?\nA:", 0),
]
_ROWS = {
    "cls": [{"prompt": text, "classes": [" Paris", " Rome"], "answer_index": at} for text, at in _CHOICES],
    "seq": [{"prompt": _CHOICES[0][0], "completion": " Paris is the one"}],
    "odds": [{"prompt": "A", "other_prompt": "B", "classes": [" c", " d"], "answer_index": 1}],
    "sums": [{"prompt": "Two and two is", "number": 4}],
}


def _broken(folder: Path, model: Path, token: int | None) -> Path:
    """A copy of `model` with one NaN: in a weight, or in the input embedding of `token`."""
    broken = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        if token is None:
            broken.transformer.h[-1].mlp.c_fc.weight[0, 0] = math.nan
        else:
            broken.config.tie_word_embeddings = False
            broken.lm_head.weight = torch.nn.Parameter(broken.lm_head.weight.clone())
            broken.transformer.wte.weight[token, 0] = math.nan
    broken.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def _files(folder: Path) -> list[str]:
    paths = {name: folder / f"{name}.jsonl" for name in _ROWS}
    for name, rows in _ROWS.items():
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path) for path in paths.values()]


def test_no_kind_of_task_has_a_metric(
    gpt2_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tasks = _broken(tmp_path / "nan", gpt2_folder, None), _files(tmp_path)
    assert (
        main(["--model", str(model), "--tasks", *tasks, "--output", str(tmp_path / "o")]) == EXIT_NOT_FINITE
    )
    read = json.loads((tmp_path / "o" / "results.json").read_text())["tasks"]
    healthy = evaluate(gpt2_folder, tasks, None, World(), EvaluateSettings()).tasks
    assert read.keys() == healthy.keys() == _ROWS.keys()
    for name, task in read.items():
        assert task["not_finite"]["count"] == task["count"] == len(_ROWS[name])
        assert task["not_finite"]["share"] == 1
        assert set(task["metrics"]) >= set(healthy[name].metrics)
        assert all(value is None for metric in task["metrics"].values() for value in metric.values())
    said = capsys.readouterr().out
    assert "the scores of 3 of 3 examples (100%) are not finite" in said and "0.6667" not in said
    rows = pq.read_table(tmp_path / "o" / "examples.parquet").to_pylist()
    assert not any(row["finite"] for row in rows)
    assert {(row["predicted"], row["correct"], row["margin"]) for row in rows} == {(None, None, None)}


def test_one_example_that_is_not_finite_leaves_its_task_without_metrics(
    gpt2_folder: Path, tmp_path: Path
) -> None:
    (token,) = AutoTokenizer.from_pretrained(gpt2_folder).encode(" day")
    model = _broken(tmp_path / "nan", gpt2_folder, token)
    prompts = ("A is", "The day is", "B is")
    rows = [{"prompt": text, "classes": [" b", " c"], "answer_index": 0} for text in prompts]
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = evaluate(model, [str(path)], None, World(), EvaluateSettings()).tasks.values()
    assert [one.finite for one in found.scored] == [True, False, True]
    assert all(math.isnan(metric.value) for metric in found.metrics.values())
    assert "1 of 3 examples (33%) are not finite (id 1)" in found.warnings()[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "kind", ["classification", "sequence_prob", "logodds", "absolute_logodds", "perplexity"]
)
def test_no_value_that_is_not_finite_becomes_a_metric(kind: str, bad: float) -> None:
    prompts, pairs = (("p",), 2) if kind == "classification" else (("p", "q"), 4)
    example = Example("0", prompts, (" a", " b"), 0)
    values = [[-1.0, -2.0, -1.5, -2.5], [-1.0, bad, -1.5, -2.5]]
    scored = [score_example(kind, example, some[:pairs], [1] * pairs) for some in values]
    assert [one.finite for one in scored] == [True, False]
    found, whole = summarize(kind, scored), summarize(kind, scored[:1])
    assert found.keys() == whole.keys()
    assert all(math.isnan(metric.value) for metric in found.values())
