"""Parsing of all formats; every fault is reported at once, with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gaguide.errors import UserError
from gaguide.evaluate.tasks.example import Example
from gaguide.evaluate.tasks.examples import ParsedExamples, parse_examples
from gaguide.evaluate.tasks.records import read_records
from gaguide.evaluate.tasks.task import Task

_GOOD = {"prompt": "A is", "classes": "[' b', ' c']", "answer_index": 1}


def _parse(path: Path, **task: object) -> ParsedExamples:
    return parse_examples(Task(name="t", **task), read_records(path), str(path))


def _jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("classes", ["[' b', ' c']", '[" b", " c"]', [" b", " c"], "(' b', ' c')"])
def test_class_lists_are_parsed_in_every_form(tmp_path: Path, classes: object) -> None:
    parsed = _parse(_jsonl(tmp_path / "a.jsonl", _GOOD | {"classes": classes}))
    assert parsed.kind == "classification"
    assert parsed.examples == (Example("0", ("A is",), (" b", " c"), 1),)
    assert parsed.warnings == ()


def test_class_lists_are_never_evaluated(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = _jsonl(tmp_path / "a.jsonl", _GOOD | {"classes": f"[open({str(marker)!r}, 'w').name, ' b']"})
    with pytest.raises(UserError, match="not a list of strings"):
        _parse(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "columns",
    [
        {"query": "A is", "choices": [" b", " c"], "gold": 1},
        {"question": "A is", "choices": [" b", " c"], "answer": "1"},
        {"text": "A is", "classes": [" b", " c"], "target": 1.0},
    ],
)
def test_columns_of_other_evaluators_are_understood(tmp_path: Path, columns: dict) -> None:
    assert _parse(_jsonl(tmp_path / "a.jsonl", columns)).examples[0].answer_index == 1


def test_a_task_maps_columns_and_adds_a_delimiter(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", {"q": "A is", "c": {"text": ["b", "c"]}, "l": 0, "id": "x7"})
    columns = {"prompt": "q", "classes": "c.text", "answer_index": "l"}
    parsed = _parse(path, kind="classification", columns=columns, delimiter=" ")
    assert parsed.examples == (Example("x7", ("A is",), (" b", " c"), 0, delimiter=" "),)


def test_csv_rows_may_span_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf,prompt,completion\n0,"two\nlines", end\n1,"x ""y""", z\n')
    parsed = _parse(path)
    assert parsed.kind == "sequence_prob"
    assert [one.pairs for one in parsed.examples] == [[("two\nlines", " end")], [('x "y"', " z")]]


def test_logodds_are_inferred_from_the_columns(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", _GOOD | {"other_prompt": "B is"})
    parsed = _parse(path)
    assert parsed.kind == "logodds"
    assert parsed.examples[0].pairs == [
        ("A is", " b"), ("A is", " c"), ("B is", " b"), ("B is", " c"),
    ]  # fmt: skip


def test_every_fault_is_reported_with_its_line(tmp_path: Path) -> None:
    path = _jsonl(
        tmp_path / "a.jsonl",
        _GOOD | {"id": "a"},
        _GOOD | {"id": "b", "answer_index": 2},
        _GOOD | {"id": "c", "answer_index": -1},
        _GOOD | {"id": "d", "answer_index": "one"},
        _GOOD | {"id": "e", "answer_index": True},
        _GOOD | {"id": "f", "classes": "[' b']"},
        _GOOD | {"id": "g", "classes": "[' b', '']"},
        _GOOD | {"id": "h", "classes": "[' b', 3]"},
        {"id": "i", "classes": "[' b', ' c']", "answer_index": 0},
        _GOOD | {"id": "j", "prompt": 5},
        _GOOD | {"id": "a"},
    )
    with pytest.raises(UserError) as caught:
        _parse(path)
    assert [fault.field for fault in caught.value.faults] == [f"{path}:{line}" for line in range(2, 12)]
    problems = "\n".join(fault.problem for fault in caught.value.faults)
    for part in [
        "is 2, but there are 2", "is -1", "'one'", "True", "1 class", "empty class", "list of strings",
        "missing column 'prompt'", "prompt is int", "duplicate id 'a', first in line 1",
    ]:  # fmt: skip
        assert part in problems


def test_faults_in_csv_name_the_first_line_of_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,classes,answer_index\n\"p\nq\",\"[' a', ' b']\",0\nr,\"[' a', ' b']\",7\n")
    with pytest.raises(UserError) as caught:
        _parse(path)
    assert [fault.field for fault in caught.value.faults] == [f"{path}:4"]


def test_lines_that_are_not_utf8_or_not_json_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe4"}\n\xff\n')
    with pytest.raises(UserError) as caught:
        read_records(path)
    assert [fault.field for fault in caught.value.faults] == [f"{path}:2", f"{path}:3"]
    _jsonl(path, _GOOD, "{", "[1]")
    with pytest.raises(UserError) as caught:
        read_records(path)
    assert [fault.field for fault in caught.value.faults] == [f"{path}:2", f"{path}:3"]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"prompt": "half \ud83c of it"}, "prompt contains half a surrogate pair"),
        ({"classes": [" b", " \udf0a"]}, "a class contains half a surrogate pair"),
        ({"id": "\ud83c"}, "id contains half a surrogate pair"),
        ({"id": None}, "column 'id' is null"),
        ({"classes": "{[1]: 2}"}, "not a list of strings"),
        ({"classes": "[" * 100_000}, "not a list of strings"),
        ({"answer_index": 10**400}, "a huge number, but there are 2"),
        ({"answer_index": "9" * 5000}, "'99999.*…, not an integer"),
    ],
)
def test_values_that_break_parsers_are_reported(tmp_path: Path, columns: dict, problem: str) -> None:
    path = _jsonl(tmp_path / "a.jsonl", _GOOD | {"id": "a"}, _GOOD | {"id": "b"} | columns)
    with pytest.raises(UserError, match=problem) as caught:
        _parse(path)
    assert [fault.field for fault in caught.value.faults] == [f"{path}:2"]


def test_deep_nesting_and_huge_answers_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.jsonl:1: is not a JSON object"):
        _parse(_jsonl(tmp_path / "a.jsonl", "[" * 100_000))
    with pytest.raises(UserError, match="the answer is a huge number"):
        _parse(_jsonl(tmp_path / "b.jsonl", {"prompt": "A", "number": 10**400}))


def test_unquoted_commas_and_duplicate_columns_in_csv_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion,prompt\nyes, no, so\nA, b\nHello, big, world, here\n"a, b", c,,\n')
    with pytest.raises(UserError) as caught:
        _parse(path)
    found = [(fault.field, fault.problem) for fault in caught.value.faults]
    assert found == [(f"{path}:1", "duplicate column 'prompt'"), (f"{path}:4", "has 4 cells, the header 3")]


def test_mapping_an_unknown_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"columns\.promt.*\n.*did you mean 'prompt'"):
        _parse(_jsonl(tmp_path / "a.jsonl", _GOOD), columns={"promt": "prompt"})


def test_empty_files_and_unknown_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not contain an example"):
        _parse(_jsonl(tmp_path / "a.jsonl"))
    with pytest.raises(UserError, match="cannot infer the kind"):
        _parse(_jsonl(tmp_path / "a.jsonl", {"prompt": "a", "reply": "b"}))


def test_classes_without_a_leading_space_cause_a_warning(tmp_path: Path) -> None:
    rows = [_GOOD | {"prompt": f"A{at} is", "classes": ["b", "c"]} for at in range(25)]
    path = _jsonl(tmp_path / "a.jsonl", _GOOD, *rows[:2])
    parsed = _parse(path)
    assert len(parsed.warnings) == 1
    assert "2 of 3 examples" in parsed.warnings[0] and "(lines 2, 3)" in parsed.warnings[0]
    many = _parse(_jsonl(tmp_path / "b.jsonl", *rows))
    assert len(many.warnings) == 1 and many.warnings[0].endswith("19, 20 and 5 more)")


def test_faults_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", *[_GOOD | {"answer_index": 9}] * 250)
    with pytest.raises(UserError) as caught:
        _parse(path)
    assert len(caught.value.faults) == 201 and "50 more" in caught.value.faults[-1].problem


def test_the_prize_files_are_parsed(memo_trap: Path, prize_csv: Path) -> None:
    parsed = _parse(memo_trap)
    assert len(parsed.examples) == 937
    assert parsed.examples[0].continuations == (" early.", " never.")
    counts = {path.stem: (_parse(path).kind, len(_parse(path).examples)) for path in prize_csv.glob("*.csv")}
    assert counts == {
        "lambada-1k_sequence-probability": ("sequence_prob", 1000),
        "qa-bias_logodds": ("logodds", 40),
        "syllogism-0shot_classification": ("classification", 1000),
    }


def test_repeated_rows_are_counted_in_a_warning(tmp_path: Path) -> None:
    rows = [
        _GOOD | {"id": "a"},
        _GOOD | {"id": "b"},
        _GOOD | {"id": "c", "prompt": "B is"},
        _GOOD | {"id": "d"},
    ]
    (warning,) = _parse(_jsonl(tmp_path / "a.jsonl", *rows)).warnings
    assert "2 of 4 examples" in warning and "intervals are too narrow (lines 2, 4)" in warning


@pytest.mark.parametrize(("answer", "wanted"), [("B", 1), (" b ", 1), ("C", 2), ("no", 1), (2, 2), ("0", 0)])
def test_answers_may_be_letters_and_texts_of_classes(answer: object, wanted: int, tmp_path: Path) -> None:
    row = {"prompt": "Q", "classes": [" yes", "no", " maybe"], "answer_index": answer}
    (example,) = _parse_rows(tmp_path, [row]).examples
    assert example.answer_index == wanted


def test_an_answer_that_is_an_index_and_the_text_of_another_class_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "1 + 1 =", "classes": ["1", "2", "3"], "answer": "2"}
    with pytest.raises(UserError, match="'2', an index and the text of class 1"):
        _parse_rows(tmp_path, [row])
    (example,) = _parse_rows(tmp_path, [row | {"answer": 1}]).examples
    assert example.answer_index == 1
    same = row | {"classes": ["0", "1"], "answer": "1"}  # either way the same class
    assert _parse_rows(tmp_path, [same]).examples[0].answer_index == 1


@pytest.mark.parametrize("answer", ["D", "AB", "ß", ""])
def test_other_texts_are_not_answers(answer: str, tmp_path: Path) -> None:
    row = {"prompt": "Q", "classes": ["x", "y", "z"], "answer_index": answer}
    with pytest.raises(UserError, match=r"but there are 3 classes|not an integer, a letter or one of"):
        _parse_rows(tmp_path, [row])


def test_a_csv_file_without_a_line_of_names(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("\"What, not?\",\"['a', 'b']\",B\nAnd now?,\"['c', 'd']\",A\n")
    header = ("question", "choices", "answer")
    records = read_records(path, header=header)
    assert [record.line for record in records] == [1, 2]
    found = parse_examples(Task(name="t", header=header), records, str(path)).examples
    assert [(one.prompts[0], one.answer_index) for one in found] == [("What, not?", 1), ("And now?", 0)]
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="header is given for a file that is not CSV"):
        read_records(tmp_path / "rows.jsonl", header=header)


def _parse_rows(folder: Path, rows: list[dict]) -> ParsedExamples:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse_examples(Task(name="t"), read_records(path), str(path))
