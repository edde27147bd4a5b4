"""Scores in reports on runs: tests on the same examples, merged evaluations, doubts and what is left out."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest

from gaguide.errors import UserError
from gaguide.evaluate.results.metrics import chance_level, score_example, summarize
from gaguide.evaluate.results.results import Results
from gaguide.evaluate.results.task_results import TaskResult
from gaguide.evaluate.results.write import write_results
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.read import TaskData
from gaguide.evaluate.tasks.task import Task
from gaguide.report import make_report, read_runs
from gaguide.report.run_findings import cautions
from gaguide.report.run_measures import measures
from gaguide.report.run_paired import paired_tests
from gaguide.report.run_scores import read_evaluations
from tests.report.synthetic import write_run
from tests.report.test_report import _command, _row, _written


def test_a_tasks_main_metric_comes_before_the_further_ones(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "a", scores={"memo": 0.5})
    path = folder / "evaluation" / "results.json"
    tasks = {
        name: {"count": 9, "metrics": {"acc": {"value": 0.5}, "class_loss": {"value": 1.0}}} for name in "xy"
    }
    path.write_text(json.dumps({"tasks": tasks | {"z": {"metrics": {"loss": {"value": 2.0}}}}}))
    rows = [row for row in measures(read_runs([folder])) if "Tasks" in row.section]
    assert [(row.section, row.name) for row in rows] == [
        ("Tasks", "x · acc ↑"), ("Tasks", "y · acc ↑"), ("Tasks", "z · loss ↓"),
        ("Tasks, further metrics", "x · class_loss ↓"), ("Tasks, further metrics", "y · class_loss ↓"),
    ]  # fmt: skip
    assert (
        "class_loss" in _written(read_runs([folder]), "html") and "class_loss" not in _command(folder).output
    )


def test_metrics_without_a_finite_value_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "evaluation" / "results.json"
    path.parent.mkdir()
    metrics = {"acc": {"value": 0.5, "low": None, "high": None}, "loss": {"value": float("nan")}}
    path.write_text(json.dumps({"tasks": {"t": {"count": 1, "metrics": metrics}}}))
    scores = read_evaluations(tmp_path, ()).scores
    assert scores is not None and [(score.metric, score.low) for score in scores] == [("acc", None)]
    assert read_evaluations(tmp_path / "none", ()).scores is None
    path.write_text("[]")
    with pytest.raises(UserError, match="no tasks"):
        read_evaluations(tmp_path, ())


def _evaluate(folder: Path, task: str, right: int, count: int = 80, prefix: str = "") -> None:
    """An evaluation in `folder` whose model answers the first `right` examples correctly."""
    prompts = [f"{prefix}{task} {at}" for at in range(count)]
    examples = tuple(Example(str(at), (text,), (" yes", " no"), 0) for at, text in enumerate(prompts))
    scored = [
        score_example("classification", one, (1.0 if at < right else -1.0, 0.0), (1, 1))
        for at, one in enumerate(examples)
    ]
    data = TaskData(Task(name=task), "classification", "made up", None, examples, len(examples), ())
    result = TaskResult(
        data, summarize("classification", scored), chance_level("classification", examples), tuple(scored)
    )
    settings = {"dtype": "fp32", "limit": None, "device": "cpu"}
    write_results(Results("model", {task: result}, settings, 1, {"total": 1.0}, {}), folder)


def test_tasks_are_tested_on_the_same_examples_and_bold_needs_more_than_noise(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", "a"), write_run(tmp_path / "b", "b")
    for task, first, second in (("near", 42, 46), ("far", 30, 60)):
        _evaluate(a / task, task, first)
        _evaluate(b / task, task, second)
    _evaluate(a / "other", "other", 10)
    _evaluate(b / "other", "other", 70, prefix="corrected ")
    runs = read_runs([a, b])
    tests = paired_tests(runs)
    near, far = (_row(measures(runs), "Tasks", name).values for name in ("near", "far"))
    assert near[1].change == "+0.050" and not near[0].best and not near[1].best
    assert far[1].best and not far[0].best and "p < 0.001" in far[1].tested
    path = b / "far" / "results.json"
    path.write_text(path.read_text().replace('"dtype": "fp32"', '"dtype": "bf16"'))
    noted = "b against a: far: evaluated with dtype bf16 instead of fp32"
    assert noted not in tests.notes and noted in paired_tests(read_runs([a, b])).notes
    one = tests.of(runs[1].name, "far", "acc")
    assert one is not None and (one.gained, one.lost, one.count) == (30, 0, 80)
    assert tests.of(runs[1].name, "other", "acc") is None
    assert "only 0 of 80 examples ask the same" in tests.notes[0]
    assert _row(measures(runs), "Tasks", "other").values[1].change is None
    page = _written(runs, "html")
    assert "Tests against a on the same examples" in page
    assert "1 of 2 tasks differ beyond noise after Holm&#39;s correction: better on far (acc +0.375)." in page
    worse = read_runs([b, a])
    assert _row(measures(worse), "Tasks", "far").values[0].best


def test_all_evaluations_of_a_run_are_merged_by_task(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "a")
    for at, (name, task, right) in enumerate([("evaluation", "x", 8), ("more", "y", 16), ("again", "x", 40)]):
        _evaluate(folder / name, task, right)
        os.utime(folder / name / "results.json", (at + 1, at + 1))
    _evaluate(folder / "evaluation.replaced-1", "z", 1)
    during = {"step": 300, "tasks": {"w": {"count": 9, "metrics": {"acc": {"value": 0.25}}}}}
    (folder / "evaluations.jsonl").write_text(json.dumps(during) + "\n")
    (run,) = read_runs([folder])
    assert {score.task: score.value for score in run.scores or () if score.metric == "acc"} == {
        "x": 0.5, "y": 0.2, "w": 0.25,
    }  # fmt: skip
    assert any("x was evaluated again: shown from again" in note for note in cautions([run]))


def test_cut_prompts_and_scores_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "a", scores={"memo-trap": 0.5})
    path = folder / "evaluation" / "results.json"
    tree = json.loads(path.read_text())
    task = tree["tasks"]["memo-trap"]
    task["truncated"] = {"count": 4, "share": 0.04, "ids": []}
    bad = {"count": 100, "not_finite": {"count": 3, "share": 0.03}, "metrics": {"acc": {"value": None}}}
    tree["tasks"]["neqa"] = bad
    path.write_text(json.dumps(tree))
    text = " ".join(cautions(read_runs([folder])))
    assert "memo-trap: 4 of 100 prompts were cut to the model's positions" in text
    assert "neqa has no finite acc (3 of 100 examples); left out" in text


def test_a_constant_answer_is_marked_and_said_in_every_format(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", "a"), write_run(tmp_path / "b", "b")
    _evaluate(a / "evaluation", "quiz", 20)  # 60 of 80 choose " no"
    _evaluate(b / "evaluation", "quiz", 80)  # all choose " yes", which is right in all
    runs = read_runs([a, b])
    acc = _row(measures(runs), "Tasks", "quiz").values
    assert [value.doubt for value in acc] == ["baseline", "constant"]
    assert [value.text for value in acc] == ["0.250§", "1.000‡"]
    assert not any(value.best for value in acc), "an improvement of the data's share is none of the model"
    found = next(text for text in make_report(runs).findings if "same examples" in text)
    assert "0 of 0 tasks" in found
    assert found.endswith("Another 1 are of constant answers (‡) and measure nothing.")
    why = "the answer ' yes' is chosen in 80 of 80 examples, and right in 100.0%"
    assert any(why in note for note in make_report(runs).cautions)
    for kind in ("md", "html"):
        page = _written(runs, kind)
        assert "1.000‡" in page and "‡ One answer or position" in page and "§ Not better than" in page
    latex = _written(runs, "latex")
    assert r"1.000$\ddagger$" in latex and r"0.250\S{}" in latex
    rows = list(csv.DictReader(io.StringIO(_written(runs, "csv"))))
    assert {(row["run"], row["doubt"]) for row in rows if row["measure"].startswith("quiz · acc ")} == {
        ("a", "baseline"), ("b", "constant"),
    }  # fmt: skip


def test_losses_near_cues_are_compared_where_the_cues_are_the_same(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, name) for name in ("a", "b", "c")]
    for folder, loss, content in zip(folders, (4.0, 3.5, 9.0), ("x", "x", "other"), strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        bands = {"on": {"loss": loss, "tokens": 10}, "1-5": {"loss": None, "tokens": 0}}
        near = {"lexicon": "negation", "mode": "words", "content": content, "bands": bands}
        summary["validation"]["after"]["near_cue"] = near
        (folder / "summary.json").write_text(json.dumps(summary))
    rows = [row for row in measures(read_runs(folders)) if row.section.startswith("Loss near cues")]
    assert [row.name for row in rows] == ["the cues themselves, after ↓"] * 2
    assert [value.number for value in rows[0].values] == [4.0, 3.5, None]
    assert [row.section.split("after ")[1] for row in rows] == [
        "negation x; n: tokens)",
        "negation other; n: tokens)",
    ]
    assert rows[0].values[1].change == "-0.5000 (-12.50%)"
    assert "$-$0.5000 ($-$12.50\\%)" in _written(read_runs(folders[:2]), "latex")
    assert [value.count for value in rows[0].values] == [10, 10, None], "tokens"
    assert [value.number for value in rows[1].values] == [None, None, 9.0]
    assert "the cues themselves, after" in _written(read_runs(folders), "md")


def test_tasks_of_other_content_in_evaluations_during_training_are_not_compared(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, name) for name in ("a", "b", "c")]
    for folder, content in zip(folders, ("x", "y", "x"), strict=True):
        task = {"count": 80, "chance": 0.5, "content": content, "truncated": {"count": 3}}
        task["metrics"] = {"acc": {"value": 0.5, "low": 0.4, "high": 0.6}}
        record = {"step": 300, "tasks": {"quiz": task}}
        (folder / "evaluations.jsonl").write_text(json.dumps(record) + "\n")
    runs = read_runs(folders)
    row = _row(measures(runs), "Tasks", "quiz")
    assert row.name == "quiz · acc ↑ (chance 0.500)"
    assert [value.change for value in row.values] == [None, None, "+0.000"]
    assert paired_tests(runs).notes == ("b, quiz: its examples are not those of a; not compared",)
    assert "a: quiz: 3 of 80 prompts were cut to the model's positions." in cautions(runs)
    assert not any("scores on" in text for text in cautions(runs))
    record = json.loads((folders[2] / "evaluations.jsonl").read_text()) | {"step": 200}
    (folders[2] / "evaluations.jsonl").write_text(json.dumps(record) + "\n")
    assert "c: its scores on quiz are from step 200 of 300." in cautions(read_runs(folders))
