"""Evaluation during training gives the exported model's numbers and does not change the training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gaguide.config.run import EvaluateSection
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, evaluate
from gaguide.evaluate.during import make_evaluation
from gaguide.evaluate.results.earlier import task_content
from gaguide.log import read_metrics
from gaguide.train.evaluating import undisturbed
from tests.support.ranks import DS_CONFIGS, TRAIN, run_ranks

pytestmark = pytest.mark.processes


def _job(folder: Path, **section: object) -> SimpleNamespace:
    """The part of a job that `make_evaluation` reads."""
    return SimpleNamespace(
        run=SimpleNamespace(name="run", evaluate=EvaluateSection(**section)),
        model=SimpleNamespace(config=AutoConfig.from_pretrained(folder)),
        corpus=SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(folder)),
        zero_stage=0,
    )


def test_records_equal_those_of_the_exported_model_and_all_state_is_restored(gpt2_folder: Path) -> None:
    evaluation = make_evaluation(_job(gpt2_folder, every=5, tasks="synthetic-order", limit=9), World())
    assert evaluation is not None
    model = AutoModelForCausalLM.from_pretrained(gpt2_folder).train()
    guidance, ticks = SimpleNamespace(enabled=True), []
    torch.manual_seed(3)
    wanted_draw = torch.rand(4)
    torch.manual_seed(3)
    with undisturbed(model, guidance):
        assert not model.training and not guidance.enabled
        record = evaluation(model, lambda: ticks.append(1))
        torch.rand(1)
    assert model.training and guidance.enabled and ticks
    assert torch.equal(torch.rand(4), wanted_draw)
    wanted = evaluate(gpt2_folder, ["synthetic-order"], None, World(), EvaluateSettings(limit=9))
    found = record["tasks"]["synthetic-order"]
    assert (found["count"], found["chance"], found["truncated"]) == (9, 0.5, {"count": 0})
    assert found["content"] == task_content(wanted.tasks["synthetic-order"].data)
    for name, metric in wanted.tasks["synthetic-order"].metrics.items():
        assert found["metrics"][name]["value"] == pytest.approx(metric.value, abs=1e-5)


def test_records_are_of_one_measure_where_the_tasks_ask_the_same(gpt2_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "quiz_classification.jsonl"

    def measure(prompt: str, **section: object) -> str:
        data.write_text(
            json.dumps({"prompt": prompt, "classes": [" a", " b"], "answer_index": 0})
            + "\n"
            + json.dumps({"prompt": "second", "classes": [" a", " b"], "answer_index": 1})
        )
        evaluation = make_evaluation(_job(gpt2_folder, tasks=str(data), **section), World())
        assert evaluation is not None
        return evaluation.measure

    one = measure("first", every=5)
    assert one == measure("first", every=7, batch_tokens=64)
    assert len({one, measure("other", every=5), measure("first", every=5, limit=1)}) == 3


def test_examples_that_are_too_long_are_cut_shortened_or_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "quiz_classification.jsonl"
    rows = [
        {"prompt": f"question {at} " * 20, "classes": [" a", " b"], "answer_index": at % 2} for at in range(6)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def measure(on_overflow: str) -> str:
        section = {"every": 5, "shots": 3, "on_overflow": on_overflow}
        evaluation = make_evaluation(_job(gpt2_folder, tasks=str(data), **section), World())
        assert evaluation is not None
        return evaluation.measure

    assert measure("cut") != measure("drop-demonstrations")
    with pytest.raises(UserError, match=r"evaluate\.on_overflow = 'fail'"):
        measure("fail")


def test_incomplete_sections_and_unknown_tasks_are_refused_before_the_first_step(gpt2_folder: Path) -> None:
    for half in ({"every": 3}, {"tasks": "demo"}):
        with pytest.raises(ValueError, match="must have both every"):
            EvaluateSection(**half)
    with pytest.raises(UserError, match="did you mean 'memo-trap'"):
        make_evaluation(_job(gpt2_folder, every=1, tasks="memotrap"), World())
    assert make_evaluation(_job(gpt2_folder), World()) is None


@pytest.mark.stress
@pytest.mark.parametrize("stage", [2, 3])
def test_the_training_curve_does_not_change(stage: int, tmp_path: Path) -> None:
    curves = {}
    for name, more in (
        ("plain", []),
        ("evaluated", ["--evaluate.every", "2", "--evaluate.tasks", "synthetic-order,synthetic-contrast"]),
    ):
        arguments = ["--deepspeed", str(DS_CONFIGS / f"zero{stage}.json"), "--output", str(tmp_path / name)]
        arguments += ["--train.steps", "5", "--train.log_every", "1", "--model.dropout", "0.1"]
        arguments += ["--validation.blocks", "8", *more]
        ended = run_ranks(TRAIN, arguments, 2)
        assert ended.returncode == 0, ended.stdout
        curves[name] = [record["loss"] for record in read_metrics(tmp_path / name / "metrics.jsonl")]
    assert curves["plain"] == curves["evaluated"] and len(curves["plain"]) == 5
    records = read_metrics(tmp_path / "evaluated" / "evaluations.jsonl")
    assert [record["step"] for record in records] == [0, 2, 4, 5]
    tasks = ["synthetic-order", "synthetic-contrast"]
    exported = evaluate(tmp_path / "evaluated" / "model", tasks, None, World(), EvaluateSettings())
    for task in tasks:
        for name, metric in exported.tasks[task].metrics.items():
            found = records[-1]["tasks"][task]["metrics"][name]["value"]
            assert found == pytest.approx(metric.value, abs=1e-4), (task, name, json.dumps(records[-1]))
