"""One folder holds one model's results: other tasks are added, anything else is refused; two at once, too."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gaguide.distributed import World
from gaguide.errors import FaultKind, UserError
from gaguide.evaluate import EvaluateSettings, Results, evaluate
from gaguide.evaluate.model_folder import find_model_folder
from gaguide.evaluate.results.earlier import lock_outputs
from gaguide.evaluate.score.saved_scores import FOLDER
from gaguide.model.content import same_content


def _evaluate(model: Path, task: str | Path, output: Path | str, **settings: object) -> Results:
    return evaluate(model, [str(task)], output, World(), EvaluateSettings(**{"limit": 4} | settings))


def _contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def test_other_tasks_are_kept_beside_the_first(gpt2_folder: Path, tmp_path: Path) -> None:
    first = _evaluate(gpt2_folder, "synthetic-order", str(tmp_path))  # a string, as in a notebook
    second = _evaluate(gpt2_folder, "synthetic-flip", tmp_path)
    _evaluate(gpt2_folder, "synthetic-order", tmp_path)  # the same again
    read = json.loads((tmp_path / "results.json").read_text())
    assert set(read["tasks"]) == {"synthetic-order", "synthetic-flip"}
    for results in (first, second):
        for name, task in results.tasks.items():
            found = read["tasks"][name]["metrics"]
            assert {metric: value["value"] for metric, value in found.items()} == {
                metric: value.value for metric, value in task.metrics.items()
            }
    assert sorted(one["tasks"] for one in read["evaluations"]) == [["synthetic-flip"], ["synthetic-order"]]
    rows = pq.read_table(tmp_path / "examples.parquet").to_pylist()
    assert sorted(row["task"] for row in rows) == ["synthetic-flip"] * 4 + ["synthetic-order"] * 4
    table = (tmp_path / "results.md").read_text()
    metrics = len(read["tasks"]["synthetic-order"]["metrics"])
    assert table.count("| synthetic-order | 4 |") == metrics and "| synthetic-flip | 4 | logodds |" in table
    harness = json.loads((tmp_path / "results_lm_eval.json").read_text())
    assert set(harness["results"]) == set(harness["n-samples"]) == set(read["tasks"])


def test_anything_else_is_refused_and_nothing_is_changed(
    gpt2_folder: Path, other_gpt2_folder: Path, tmp_path: Path
) -> None:
    quiz = tmp_path / "quiz.jsonl"
    row = {"prompt": "A is", "classes": [" b", " c"], "answer_index": 1}
    quiz.write_text(json.dumps(row) + "\n")
    output = tmp_path / "out"
    _evaluate(gpt2_folder, quiz, output)
    before = _contents(output)
    with pytest.raises(UserError, match="results of another model"):
        _evaluate(other_gpt2_folder, "synthetic-flip", output)
    with pytest.raises(UserError, match=r"other settings \(limit 4 instead of 3"):
        _evaluate(gpt2_folder, "synthetic-flip", output, limit=3)
    quiz.write_text(json.dumps(row | {"answer_index": 0}) + "\n")
    with pytest.raises(UserError, match="task quiz on other examples") as caught:
        _evaluate(gpt2_folder, quiz, output)
    assert "another folder" in caught.value.faults[0].remedy
    assert _contents(output) == before
    (output / "results.json").write_text("[]")
    with pytest.raises(UserError, match="not an evaluation's"):
        _evaluate(gpt2_folder, quiz, output)


def test_two_evaluations_cannot_write_into_one_folder_at_once(gpt2_folder: Path, tmp_path: Path) -> None:
    with (
        lock_outputs([tmp_path]),
        pytest.raises(UserError, match="another evaluation writes into it") as caught,
    ):
        _evaluate(gpt2_folder, "synthetic-flip", tmp_path)
    assert caught.value.faults[0].kind is FaultKind.BUSY
    _evaluate(gpt2_folder, "synthetic-flip", tmp_path)


def test_the_kept_work_of_another_evaluation_stays(gpt2_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / FOLDER / "another" / "rank-0-1.jsonl"
    other.parent.mkdir(parents=True)
    other.write_text("")
    _evaluate(gpt2_folder, "synthetic-flip", tmp_path)
    assert [path for path in (tmp_path / FOLDER).rglob("*") if path.is_file()] == [other]


def test_identity_is_content(gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(gpt2_folder, copy)  # other place and times
    (copy / "README.md").write_text("a note")
    identity = find_model_folder(str(gpt2_folder)).identity
    assert find_model_folder(str(copy)).identity == identity
    assert {one["how"] for one in identity["files"]} == {"whole"}
    weights = copy / "model.safetensors"
    content, times = bytearray(weights.read_bytes()), weights.stat()
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)  # of the same size
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert find_model_folder(str(copy)).identity != identity
    monkeypatch.setattr("gaguide.model.content._WHOLE_BYTES", 2**16)
    monkeypatch.setattr("gaguide.model.content._PART_BYTES", 2**10)
    sampled = find_model_folder(str(copy)).identity
    assert any(one["how"] == "sampled" and "changed" in one for one in sampled["files"])
    os.utime(weights, ns=(1, 1))
    again = find_model_folder(str(copy)).identity
    assert again != sampled and same_content(again, sampled) and not same_content(identity, sampled)


def test_a_copy_of_a_large_model_adds_to_the_results_of_the_first(
    gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gaguide.model.content._WHOLE_BYTES", 2**16)  # as of a model of many gigabytes
    monkeypatch.setattr("gaguide.model.content._PART_BYTES", 2**10)
    _evaluate(gpt2_folder, "synthetic-order", tmp_path / "out")
    copy = shutil.copytree(gpt2_folder, tmp_path / "copy")
    os.utime(copy / "model.safetensors", ns=(1, 1))
    _evaluate(copy, "synthetic-flip", tmp_path / "out")
    read = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(read["tasks"]) == {"synthetic-order", "synthetic-flip"}
