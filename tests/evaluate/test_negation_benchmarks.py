"""The tasks about negation on the real files where present, and on rows in each publisher's layout."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from gaguide.errors import UserError
from gaguide.evaluate.results.parts import constant_answer
from gaguide.evaluate.tasks.read import TaskData, read_tasks
from gaguide.evaluate.tasks.task import built_in_tasks, groups
from gaguide.study.content import read_task_contents

NEGATION = Path(__file__).parents[3] / "shared" / "data" / "negation"

LAYOUTS = Path(__file__).parent / "negation_layouts"
"""A few invented rows of each set, in its publisher's files and columns."""


@pytest.fixture
def layouts(tmp_path: Path) -> Path:
    """A copy of `LAYOUTS` to change."""
    shutil.copytree(LAYOUTS, tmp_path / "data")
    return tmp_path / "data"


def read(name: str, folder: Path) -> TaskData:
    return read_tasks([name], folder, None)[0]


def test_every_set_says_where_it_is_from_and_what_it_shows() -> None:
    assert len(groups()["negation"]) == 10
    for name in groups()["negation"]:
        task = built_in_tasks()[name]
        assert task.summary and task.shows and task.hides and task.license, name
        assert task.generator or (task.source and task.files), name


def test_the_layout_of_condaqa(layouts: Path) -> None:
    task = read("condaqa", layouts)
    assert [example.continuations[example.answer_index or 0] for example in task.examples] == [
        " No", " No", " Don't know", " Yes"
    ]  # fmt: skip
    assert {example.group for example in task.examples} == {"4 q1"}
    assert [example.part for example in task.examples] == ["original", "paraphrase", "scope", "affirmative"]
    assert task.examples[0].prompts == ("Passage: It rarely snows.\nQuestion: Is snow common?\nAnswer:",)
    assert any("1 of 5 rows are left out for their label: 'two days' (1)" in text for text in task.warnings)


def test_the_layouts_of_monli_med_and_nan_nli(layouts: Path) -> None:
    monli = read("monli", layouts)
    assert [example.id for example in monli.examples] == ["nmonli_test:0", "nmonli_test:1", "pmonli:0"]
    assert monli.examples[0].group == monli.examples[1].group != monli.examples[2].group
    assert [example.part for example in monli.examples] == ["negated", "negated", "affirmative"]
    assert [example.answer_index for example in monli.examples] == [1, 0, 0]
    med = read("med", layouts)
    assert [example.part for example in med.examples] == ["upward", "downward", "none"]
    assert 'Premise: A cat "sat".\n' in med.examples[0].prompts[0]
    nan = read("nan-nli", layouts)
    assert [example.answer_index for example in nan.examples] == [0, 1, 2]
    assert nan.examples[2].prompts[0].startswith("Premise: Not surprisingly, he won.\n")
    assert [example.group for example in nan.examples][:2] == ["Not all came."] * 2


def test_the_layouts_of_cannot_and_this_is_not_a_dataset(layouts: Path) -> None:
    cannot = read("cannot", layouts)
    assert [example.answer_index for example in cannot.examples] == [0, 0, 1]
    assert cannot.examples[0].group == cannot.examples[1].group
    assert cannot.examples[2].prompts[0].startswith('Sentence 1: He said "yes".\n')
    facts = read("not-a-dataset", layouts)
    assert [example.answer_index for example in facts.examples] == [1, 0]
    assert [(example.group, example.part) for example in facts.examples] == [
        ("2 7", "affirmation"), ("2 7", "verbal")
    ]  # fmt: skip


def test_the_layout_of_blimp_with_the_better_sentence_in_either_position(layouts: Path) -> None:
    task = read("blimp-npi", layouts)
    assert len(task.examples) == 14 and set(Counter(one.part for one in task.examples).values()) == {2}
    assert Counter(one.answer_index for one in task.examples) == {0: 7, 1: 7}
    assert {one.prompts for one in task.examples} == {("",)}
    right = {one.continuations[one.answer_index or 0] for one in task.examples}
    assert right == {"Kim has not ever met Ann.", "Kim has not ever met Bob."}


def test_scone_on_the_real_files() -> None:
    if not NEGATION.is_dir():
        pytest.skip("needs ScoNe's files beside the repository (shared/data/negation)")
    nli, nlg = read("scone-nli", NEGATION), read("scone-nlg", NEGATION)
    assert not nli.warnings and not nlg.warnings  # the files are the release's
    sizes = Counter(example.group for example in nli.examples)
    assert (len(nli.examples), len(sizes), set(sizes.values())) == (1200, 200, {6})
    assert set(Counter(example.part for example in nli.examples).values()) == {200}
    baseline = constant_answer(nli.examples)
    assert baseline is not None and baseline[1] == 0.5
    sizes = Counter(example.group for example in nlg.examples)
    assert (len(nlg.examples), len(sizes), set(sizes.values())) == (222, 74, {3})
    assert Counter(example.answer_index for example in nlg.examples) == {0: 111, 1: 111}


def test_files_of_a_set_that_are_missing_are_named(layouts: Path, tmp_path: Path) -> None:
    (layouts / "pmonli.jsonl").unlink()
    with pytest.raises(UserError, match=r"does not contain pmonli\.jsonl of task monli"):
        read("monli", layouts)
    with pytest.raises(UserError, match=r"get scone_nlg\.csv from https://github\.com/selenashe/ScoNe"):
        read_tasks(["scone-nlg"], None, None)


def test_rows_that_do_not_fit_a_template_are_listed_with_their_lines(layouts: Path) -> None:
    (layouts / "nan.csv").write_text(
        "premise,hypothesis,label,Construction\nA.,B.,maybe,x\nC.,D.,perhaps,x\n"
    )
    with pytest.raises(UserError) as caught:
        read("nan-nli", layouts)
    text = str(caught.value)
    assert "nan.csv:2: label is 'maybe'" in text and "nan.csv:3: label is 'perhaps'" in text
    assert "give one of entailment, contradiction, neutral" in text
    (layouts / "nan.csv").write_text("premise,label,Construction\nA.,neutral,x\nC.,neutral,x\n")
    with pytest.raises(UserError, match=r"2 of 2 rows: missing column 'hypothesis' \(lines 2, 3\)"):
        read("nan-nli", layouts)


def test_a_quotation_mark_that_swallows_rows_of_a_tsv_is_refused(layouts: Path) -> None:
    (layouts / "cannot_dataset_v1.1.tsv").write_text(
        'premise\thypothesis\tlabel\n"Yes he said.\tNo.\t1\nIt "works".\tIt runs.\t0\n"x"\ty\t1\n'
    )
    with pytest.raises(UserError, match="begins with a quotation mark continues on the next line"):
        read("cannot", layouts)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ({"prompt": "{a}", "classes": [" x", " y"]}, "label and answer"),
        ({"prompt": "{a}", "completion": "{b}", "last_word": True}, "one of classes, classes_by"),
        ({"prompt": "{a}", "classes_by": {"1": [" x", " y"]}, "answer": 0}, "classes_column"),
        ({"prompt": "{a}", "classs": []}, "unknown field"),
    ],
)
def test_contradictory_templates_are_refused(tmp_path: Path, template: dict, problem: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(json.dumps({"name": "mine", "file": "rows.jsonl", "template": template}))
    (tmp_path / "rows.jsonl").write_text('{"a": "1", "b": "2"}\n')
    with pytest.raises(UserError, match=problem):
        read_tasks([str(path)], None, None)


def test_braces_nested_columns_and_columns_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"a b": "x", "c": {"d": 3.50}, "yes": true, "one": " 1", "two": " 2"}\n'
    )
    (tmp_path / "task.yaml").write_text(
        "name: mine\nfile: rows.jsonl\n"
        "template:\n  prompt: '{{{a b}}} {c.d} {yes}:'\n  classes: ['{one}', '{two}']\n"
        "  label: 'yes'\n  answers: {true: 1}\n"
    )
    (example,) = read_tasks([str(tmp_path / "task.yaml")], None, None)[0].examples
    assert example.prompts == ("{x} 3.50 true:",)
    assert (example.continuations, example.answer_index) == ((" 1", " 2"), 1)


def test_groups_of_several_files_stay_together_under_a_limit(tmp_path: Path) -> None:
    for name in "ab":
        rows = [{"text": f"{name} {at}", "pair": f"p{at}", "right": at % 2} for at in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(
        "name: mine\nfiles: [{file: a.jsonl}, {file: b.jsonl}]\n"
        "template: {prompt: '{text}', classes: [' x', ' y'], label: right, group: '{pair}'}\n"
    )
    (whole,) = read_tasks([str(tmp_path / "task.yaml")], None, 4)
    assert [one.id for one in whole.examples] == ["a:0", "b:0", "a:1", "b:1"] and not whole.warnings
    (cut,) = read_tasks([str(tmp_path / "task.yaml")], None, 3)
    (warning,) = cut.warnings
    assert "of 1 groups not all examples are asked (group p1)" in warning


def test_the_content_of_every_file_is_a_tasks_identity(layouts: Path) -> None:
    def identity() -> tuple[str, str | None, str | None]:
        found = read_task_contents(["monli"], layouts).contents["monli"]
        return found.identity, found.data, read("monli", layouts).sha256

    before = identity()
    assert before[1] == before[2]
    text = (layouts / "pmonli.jsonl").read_text()
    (layouts / "pmonli.jsonl").write_text(text.replace("cat", "dog"))
    after = identity()
    assert after[1] == after[2] and after[0] != before[0] and after[1] != before[1]
