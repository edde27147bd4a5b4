"""Task files of lm-evaluation-harness: faults before a model loads, draws, functions, names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gaguide.errors import UserError
from gaguide.evaluate.tasks.options import TaskOptions
from gaguide.evaluate.tasks.read import TaskData, read_tasks

_ROWS = [{"q": f"Is {at} odd?", "opts": ["yes", "no"], "gold": 1 - at % 2} for at in range(6)]
_QUIZ = {
    "task": "quiz", "output_type": "multiple_choice", "dataset_path": "json", "test_split": "test",
    "dataset_kwargs": {"data_files": {"test": "quiz.jsonl"}}, "doc_to_text": "{{q}}",
    "doc_to_choice": "opts", "doc_to_target": "gold",
}  # fmt: skip


def _write(folder: Path, rows: list[dict], **changed: object) -> Path:
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "quiz.yaml"
    path.write_text(json.dumps({key: value for key, value in (_QUIZ | changed).items() if value is not None}))
    return path


def _read(folder: Path, rows: list[dict] = _ROWS, shots: int | None = None, **changed: object) -> TaskData:
    (found,) = read_tasks([str(_write(folder, rows, **changed))], None, None, shots=shots)
    return found


def test_data_files_beside_the_task_file_are_found_from_any_folder(tmp_path: Path) -> None:
    task = _read(tmp_path)
    assert [example.prompts for example in task.examples] == [(row["q"],) for row in _ROWS]
    assert task.examples[1].continuations == (" yes", " no") and task.examples[1].answer_index == 0
    assert task.source == str(tmp_path / "quiz.jsonl") and task.available == 6


def test_every_row_that_does_not_fit_is_reported_with_file_and_row(tmp_path: Path) -> None:
    rows = [dict(row) for row in _ROWS]
    rows[1]["gold"], rows[2]["opts"], rows[4]["q"] = 7, [], None  # type: ignore[assignment]
    path = _write(tmp_path, rows, doc_to_text="{{q.strip()}}")
    with pytest.raises(UserError) as error:
        read_tasks([str(path)], None, None)
    text, where = str(error.value), f"{tmp_path / 'quiz.jsonl'}"
    assert f"{where}:2" in text and "doc_to_target gives 7, which is not one of 'yes', 'no'" in text
    assert f"{where}:3" in text and "doc_to_choice gives []" in text
    assert f"{where}:5" in text and "doc_to_text cannot be rendered" in text
    assert len(error.value.faults) == 3


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}, r"data_files.*does not exist"),
        ({"test_split": "dev"}, r"test_split.*must be one of test"),
        ({"fewshot_split": "dev", "num_fewshot": 1}, r"fewshot_split.*must be one of test"),
        ({"num_fewshot": 6, "fewshot_split": "test"}, "asks for 6 demonstrations, but there are"),
        ({"doc_to_text": "{{nothing}}"}, "'nothing' is undefined"),
        ({"doc_to_text": "{% if %}"}, "cannot be rendered"),
        ({"doc_to_choice": "{{q}}"}, "which is not a list"),
        ({"dataset_path": "not_a/data_set", "dataset_kwargs": None}, "cannot be loaded"),
        ({"process_docs": None, "doc_to_text": "{{ ''.__class__.__mro__ }}"}, "cannot be rendered"),
    ],
)
def test_a_wrong_task_file_is_refused(
    changed: dict, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(UserError, match=wanted) as error:
        _read(tmp_path, **changed)
    assert all(fault.remedy for fault in error.value.faults)


def test_a_data_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, _ROWS)
    (tmp_path / "quiz.jsonl").write_text("{not json\n")
    with pytest.raises(UserError, match=r"dataset_kwargs.*its data cannot be read as json"):
        read_tasks([str(path)], None, None)


def test_functions_run_only_where_they_are_trusted(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        "def keep(rows):\n    return rows.filter(lambda row: row['gold'] == 0)\n"
        "def ask(row):\n    return 'asked: ' + row['q']\n"
    )
    path = tmp_path / "quiz.yaml"
    lines = [f"{key}: {json.dumps(value)}" for key, value in _QUIZ.items() if key != "doc_to_text"]
    lines += ["process_docs: !function code.keep", "doc_to_text: !function code.ask"]
    _write(tmp_path, _ROWS)
    path.write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        read_tasks([str(path)], None, None)
    assert len(error.value.faults) == 2 and "--trust-remote-code" in str(error.value)
    (task,) = read_tasks([str(path)], None, None, options=TaskOptions(trust_remote_code=True))
    assert [example.prompts[0] for example in task.examples] == [f"asked: Is {at} odd?" for at in (1, 3, 5)]


def test_zero_shots_of_a_file_stay_zero_as_in_the_harness(tmp_path: Path) -> None:
    task = _read(tmp_path, shots=2, num_fewshot=0)
    assert task.task.fewshot is None and any("--shots does not change" in text for text in task.warnings)
    assert _read(tmp_path, shots=2, fewshot_split="test").examples[0].prompts[0].count("odd?") == 3


def test_a_folder_gives_each_of_its_tasks_once(tmp_path: Path) -> None:
    _write(tmp_path, _ROWS)
    (tmp_path / "_template.yaml").write_text(json.dumps({"dataset_path": "json", "test_split": "test"}))
    (tmp_path / "all.yaml").write_text(json.dumps({"group": "all", "task": ["quiz"]}))
    assert [task.task.name for task in read_tasks([str(tmp_path)], None, None)] == ["quiz"]


def test_names_are_found_below_the_included_folders_and_missing_ones_are_suggested(tmp_path: Path) -> None:
    _write(tmp_path, _ROWS)
    options = TaskOptions(include_path=(tmp_path,))
    (task,) = read_tasks(["quiz"], None, None, options=options)
    assert task.task.name == "quiz"
    with pytest.raises(UserError, match="did you mean 'quiz'"):
        read_tasks(["quizz"], None, None, options=options)
    with pytest.raises(UserError, match=r"include_path.*does not exist"):
        read_tasks(["quiz"], None, None, options=TaskOptions(include_path=(tmp_path / "gone",)))
    (tmp_path / "all.yaml").write_text(json.dumps({"group": "all", "task": ["quiz", "nope"]}))
    with pytest.raises(UserError, match=r"group all: task.*must be a task, group or tag"):
        read_tasks([str(tmp_path / "all.yaml")], None, None)
    (tmp_path / "all.yaml").write_text(json.dumps({"group": "all", "task": ["all"]}))
    with pytest.raises(UserError, match="contains itself"):
        read_tasks(["all"], None, None, options=options)
