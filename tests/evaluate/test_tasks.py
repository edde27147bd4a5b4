"""Task files, names, groups and generated sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gaguide.errors import FaultCollector, UserError
from gaguide.evaluate.tasks.locate import locate_tasks
from gaguide.evaluate.tasks.read import read_tasks
from gaguide.evaluate.tasks.synthetic import GENERATORS, generate
from gaguide.evaluate.tasks.task import built_in_tasks, groups

_ROW = {"prompt": "A is", "classes": [" b", " c"], "answer_index": 1}


def _write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_eleven_sets_of_the_prize_are_described() -> None:
    tasks = [built_in_tasks()[name] for name in groups()["inverse-scaling"]]
    assert len(tasks) == 11
    for task in tasks:
        assert task.file and task.hub and task.sha256 and len(task.sha256) == 64
    reported = [task for task in tasks if task.paper]
    assert len(reported) == 10
    assert all(len(row) == 5 for task in reported for row in task.paper.values())


def test_a_group_is_reduced_to_what_the_data_folder_contains(tmp_path: Path) -> None:
    _write(tmp_path / "neqa_classification.jsonl", _ROW)
    _write(tmp_path / "sig-figs.jsonl", _ROW)
    found = locate_tasks(["inverse-scaling"], tmp_path, FaultCollector())
    assert [entry.task.name for entry in found] == ["neqa", "sig-figs"]
    assert found[0].path == tmp_path / "neqa_classification.jsonl"


def test_files_of_a_folder_are_recognized_as_tasks(tmp_path: Path) -> None:
    _write(tmp_path / "neqa_classification.jsonl", _ROW)
    _write(tmp_path / "own_logodds.jsonl", _ROW | {"other_prompt": "x"})
    _write(tmp_path / "plain.jsonl", _ROW)
    found = {entry.task.name: entry.task for entry in locate_tasks([str(tmp_path)], None, FaultCollector())}
    assert sorted(found) == ["neqa", "own", "plain"]
    assert found["neqa"].paper and found["own"].kind == "logodds" and found["plain"].kind is None


def test_a_task_file_of_five_lines(tmp_path: Path) -> None:
    _write(tmp_path / "quiz.jsonl", {"question": "A is", "options": ["b", "c"], "label": 0})
    (tmp_path / "quiz.yaml").write_text(
        "name: my-quiz\nkind: classification\nfile: quiz.jsonl\n"
        "columns: {prompt: question, classes: options, answer_index: label}\ndelimiter: ' '\n"
    )
    (task,) = read_tasks([str(tmp_path)], None, None)
    assert (task.task.name, task.examples[0].continuations) == ("my-quiz", (" b", " c"))


def test_a_file_that_differs_from_the_release_causes_a_warning(tmp_path: Path) -> None:
    _write(tmp_path / "neqa_classification.jsonl", _ROW)
    (task,) = read_tasks(["neqa"], tmp_path, None)
    assert any("byte for byte" in warning for warning in task.warnings)


def test_all_faults_of_all_names_are_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: x\nkindd: classification\ncount: many\n")
    (tmp_path / "gone.yaml").write_text("name: y\nfile: gone.jsonl\n")
    (tmp_path / "empty").mkdir()
    names = ["memotrap", str(tmp_path / "bad.yaml"), str(tmp_path / "gone.yaml"), str(tmp_path / "empty")]
    with pytest.raises(UserError) as caught:
        read_tasks([*names, str(_write(tmp_path / "wrong.jsonl", _ROW | {"answer_index": 7}))], None, None)
    text = str(caught.value)
    assert "did you mean 'memo-trap'?" in text and "did you mean 'kind'?" in text
    assert "count" in text and "gone.jsonl" in text and "without .jsonl" in text
    assert "wrong.jsonl:1" in text


def test_duplicate_keys_of_a_task_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("name: x\nkind: classification\nname: y\n")
    with pytest.raises(UserError, match=r"duplicate key 'name'"):
        read_tasks([str(tmp_path / "twice.yaml")], None, None)


def test_two_files_with_the_same_task_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        _write(tmp_path / folder / "set.jsonl", _ROW)
    with pytest.raises(UserError, match="names two tasks"):
        read_tasks([str(tmp_path / "a"), str(tmp_path / "b")], None, None)


def test_an_unreachable_hub_is_reported_with_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="no route") as caught:
        read_tasks(["neqa"], None, None)
    assert "neqa_classification.jsonl" in str(caught.value) and "--data" in str(caught.value)


def test_hub_data_sets_are_read(tmp_path: Path) -> None:
    # `datasets` accepts a local folder in place of a hub id.
    (tmp_path / "set").mkdir()
    _write(tmp_path / "set" / "train.jsonl", _ROW, _ROW | {"answer_index": 0})
    (tmp_path / "task.yaml").write_text(f"name: hubset\nkind: classification\nhub: {tmp_path / 'set'}\n")
    (task,) = read_tasks([str(tmp_path / "task.yaml")], None, None)
    assert [one.answer_index for one in task.examples] == [1, 0]


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_generated_sets_depend_on_the_seed_alone(name: str) -> None:
    rows = generate(name, 40, seed=0)
    assert rows == generate(name, 60, seed=0)[:40] != generate(name, 40, seed=1)
    assert len({repr(row) for row in rows}) == 40


def test_an_exhausted_generator_is_reported(tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text("name: many\ngenerator: flip\ncount: 100000\n")
    with pytest.raises(UserError, match=r"the generator has \d+ different examples"):
        read_tasks([str(tmp_path / "many.yaml")], None, None)


def test_the_demo_group_is_complete_and_balanced() -> None:
    tasks = read_tasks(["demo"], None, None)
    assert len(tasks) == len(groups()["demo"]) >= 5
    for task in tasks:
        assert task.task.name.startswith("synthetic-")
        assert len(task.examples) == task.task.count and not task.warnings
        if task.kind == "classification":
            share = sum(one.answer_index == 0 for one in task.examples) / len(task.examples)
            assert 0.3 < share < 0.7
