"""Task files of lm-evaluation-harness 0.4.13: which are read, and why the others are refused."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

from gaguide.errors import UserError
from gaguide.evaluate.tasks.harness.config import HarnessTask, parse_task
from gaguide.evaluate.tasks.harness.source import is_harness_tree, read_source

_QUIZ = {
    "task": "quiz", "output_type": "multiple_choice", "dataset_path": "json", "test_split": "test",
    "doc_to_text": "{{question}}", "doc_to_choice": ["A", "B"], "doc_to_target": "answerKey",
}  # fmt: skip


def _parse(folder: Path, trust: bool = False, **changed: object) -> HarnessTask:
    path = folder / "quiz.yaml"
    path.write_text(json.dumps({key: value for key, value in (_QUIZ | changed).items() if value is not None}))
    return parse_task(read_source(path), path, trust)


@pytest.mark.slow
def test_all_of_the_harness_own_task_files_are_read_or_refused_with_a_reason() -> None:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        pytest.skip("needs lm-evaluation-harness (extra: test)")
    root, cache = Path(spec.origin).parent / "tasks", dict[Path, dict]()
    read, refused = Counter[str](), Counter[str]()
    for path in sorted(root.glob("**/*.yaml")):
        tree = read_source(path, cache)
        assert is_harness_tree(tree), path
        if "group" in tree and "class" not in tree:  # some Python tasks name the group they are in
            read["group"] += 1
            continue
        try:
            read[parse_task(tree, path, trust=False).output_type] += 1
        except UserError as error:
            refused[tree.get("output_type", "generate_until")] += 1
            assert all(fault.problem and fault.remedy for fault in error.faults)
            assert "!function" in str(error) or "generates" in str(error) or "required" in str(error) or (
                "Python class" in str(error)
            ), f"{path}: {error}"  # fmt: skip
    # Everything without Python functions and without free text.
    assert read == {
        "group": 855, "multiple_choice": 2731, "loglikelihood": 18, "loglikelihood_rolling": 24,
    }  # fmt: skip
    assert refused["multiple_choice"] == 5660


def test_a_function_is_refused_with_its_file_and_the_nearest_way_unless_trusted(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text("raise SystemExit('ran')\n")
    path = tmp_path / "quiz.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in _QUIZ.items()))
    with path.open("a") as file:
        file.write("process_docs: !function utils.clean\n")
    tree = read_source(path)  # reading runs nothing
    with pytest.raises(
        UserError, match=r"process_docs: is a Python function, !function utils\.clean"
    ) as error:
        parse_task(tree, path, trust=False)
    assert "JSON Lines" in str(error.value) and str(tmp_path / "utils.py") in str(error.value)
    trusted = parse_task(tree, path, trust=True).process_docs
    assert trusted is not None and trusted.file == tmp_path / "utils.py"


def test_included_files_come_below_and_cycles_and_alias_bombs_end(tmp_path: Path) -> None:
    (tmp_path / "base").write_text("a: 1\nb: 2\ntask_list: [x]\n")
    (tmp_path / "top.yaml").write_text("include: base\nb: 3\n")
    assert read_source(tmp_path / "top.yaml") == {"a": 1, "b": 3}
    (tmp_path / "base").write_text("include: top.yaml\n")
    with pytest.raises(UserError, match="includes itself"):
        read_source(tmp_path / "top.yaml")
    levels = "\n".join(f"l{at}: &l{at} [{', '.join([f'*l{at - 1}'] * 10)}]" for at in range(1, 10))
    (tmp_path / "bomb.yaml").write_text(f"l0: &l0 [x]\n{levels}\n")
    with pytest.raises(UserError, match="once aliases are written out"):
        read_source(tmp_path / "bomb.yaml")


def test_all_faults_of_a_file_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        _parse(tmp_path, doc_to_text=None, test_split=None, unknown=1, fewshot_config={"sampler": "best"})
    fields = {fault.field.split(": ")[-1] for fault in error.value.faults}
    assert fields == {"doc_to_text", "test_split", "unknown", "fewshot_config.sampler"}


def test_demonstrations_inherit_what_they_do_not_set(tmp_path: Path) -> None:
    task = _parse(tmp_path, target_delimiter=" = ", fewshot_split="dev", fewshot_config={"doc_to_text": "q"})
    assert task.fewshot.target_delimiter == " = " and task.fewshot.fewshot_delimiter == "\n\n"
    assert (task.fewshot.split, task.fewshot.doc_to_text) == ("dev", "q")
    assert task.fewshot.doc_to_choice == ["A", "B"]


def test_metrics_that_are_not_computed_are_named(tmp_path: Path) -> None:
    listed = [
        {"metric": "acc"},
        {"metric": "brier_score"},
        {"metric": "bleu"},
        {"metric": "f1", "aggregation": "x"},
        {"metric": "mcc", "aggregation": "mean"},
    ]
    task = _parse(tmp_path, metric_list=listed)
    assert [(one.name, one.aggregation, one.higher_is_better) for one in task.metrics] == [
        ("acc", "mean", True), ("brier_score", "brier_score", False),
    ]  # fmt: skip
    assert len(task.warnings) == 3 and "mcc is not computed: aggregation mean" in task.warnings[2]
    assert "bleu" in task.warnings[0] and "aggregation x" in task.warnings[1]
