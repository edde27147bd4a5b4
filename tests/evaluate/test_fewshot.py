"""Demonstrations: never the asked example's own content, answers spelt as in the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gaguide.errors import UserError
from gaguide.evaluate.tasks.fewshot import reveals
from gaguide.evaluate.tasks.read import TaskData, read_tasks
from gaguide.evaluate.tasks.task import built_in_tasks

_QUIZ = [("France", 0), ("Italy", 1), ("Spain", 0), ("France", 0), ("Greece", 1), ("Italy", 1)]


def _read(
    folder: Path, rows: list[dict], shots: int | None = None, limit: int | None = None, **task: object
) -> TaskData:
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "quiz.yaml").write_text(json.dumps({"name": "quiz", "file": "quiz.jsonl"} | task))
    (found,) = read_tasks([str(folder / "quiz.yaml")], None, limit, shots=shots)
    return found


def _quiz(count: int = 6) -> list[dict]:
    return [
        {"prompt": f"Q: capital of {name}?\nA:", "classes": [f" {name}ville", " Rome"], "answer_index": at}
        for name, at in _QUIZ[:count]
    ]


def _blocks(task: TaskData) -> list[list[str]]:
    return [example.prompts[0].split("\n\n") for example in task.examples]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("file", [None, "quiz.jsonl"])
def test_an_example_is_never_among_its_own_demonstrations(
    seed: int, file: str | None, tmp_path: Path
) -> None:
    fewshot = {"count": 2, "seed": seed} | ({"file": file} if file else {})
    task = _read(tmp_path, _quiz(), fewshot=fewshot)
    for *shown, asked in _blocks(task):
        assert len(shown) == 2
        assert not any(text.startswith(asked) for text in shown)
    if file:
        assert [blocks[-1] for blocks in _blocks(task)] == [row["prompt"] for row in _quiz()]
        assert any("another demonstration in place of their own content" in text for text in task.warnings)
    else:
        assert len(task.examples) == task.available <= 4
        assert (len(task.examples) < 4) == any("are not asked" in text for text in task.warnings)


def test_too_few_other_demonstrations_are_refused_with_the_examples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"for 2 of 4 examples .* fewer than 3 .*\(ids 0, 3\)"):
        _read(tmp_path, _quiz(4), fewshot={"count": 3, "file": "quiz.jsonl"})
    assert _read(tmp_path, _quiz(4), fewshot={"count": 2, "file": "quiz.jsonl"}).available == 4
    same = [_quiz(1)[0]] * 3
    with pytest.raises(UserError, match="every example that is left"):
        _read(tmp_path, same, fewshot={"count": 1})


def test_most_examples_keep_the_same_demonstrations_so_that_their_prefix_is_shared(tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {at} odd?", "completion": " Yes" if at % 2 else " No"} for at in range(40)]
    task = _read(tmp_path, rows, fewshot={"count": 3, "file": "quiz.jsonl"})
    prefixes = [tuple(blocks[:-1]) for blocks in _blocks(task)]
    assert len({prefix for prefix in prefixes if prefixes.count(prefix) == 37}) == 1
    assert len(set(prefixes)) == 4
    ends = task.examples[0].demonstration_ends
    assert task.examples[0].prompts[0][ends[-1] :] == "Is 0 odd?" and len(ends) == 3


def test_the_answer_counts_as_content_and_not_the_prompt_alone(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Which?", "classes": [f" a{at}", f" b{at}"], "answer_index": at % 2} for at in range(4)
    ]
    task = _read(tmp_path, rows, fewshot={"count": 2})
    assert len(task.examples) == 2 and not task.warnings
    turned = _read(tmp_path, [rows[0], rows[0] | {"classes": [" b0", " a0"]}], shots=0).examples
    assert reveals(*turned)
    spaced = _read(tmp_path, [rows[0], rows[0] | {"prompt": " Which?\n"}], shots=0).examples
    assert reveals(*spaced)


@pytest.mark.parametrize(
    ("row", "task", "shown"),
    [
        ('{"prompt": "Pi is", "number": 3.50}', {}, "Pi is 3.50"),
        ('{"prompt": "Many are", "number": 1234567}', {}, "Many are 1234567"),
        ('{"prompt": "Many are", "number": "1,234,567"}', {}, "Many are 1,234,567"),
        ('{"prompt": "Few are\\n", "number": 1e-7}', {}, "Few are\n1e-7"),
        ('{"prompt": "2+2=", "number": 4}', {"delimiter": ""}, "2+2=4"),
        ('{"prompt": "Q:", "classes": [" YES  ", "no"], "answer_index": 0}', {}, "Q: YES  "),
        ('{"prompt": "Q:", "classes": ["Yes", "no"], "answer_index": 0}', {"delimiter": " -> "}, "Q: -> Yes"),
        ('{"prompt": "The end", "completion": "  Is near. "}', {}, "The end  Is near. "),
    ],
)
def test_answers_are_shown_as_the_data_spell_them(row: str, task: dict, shown: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(row + "\n")
    asked = json.loads(row) | {"prompt": "Asked:"}
    found = _read(tmp_path, [asked], fewshot={"count": 1, "file": "train.jsonl", "separator": "|"}, **task)
    assert found.examples[0].prompts[0] == f"{shown}|Asked:"


def test_demonstrations_in_the_order_of_the_file(tmp_path: Path) -> None:
    task = _read(tmp_path, _quiz(), fewshot={"count": 2, "draw": "first"})
    assert all(blocks[:2] == _blocks(task)[0][:2] for blocks in _blocks(task))
    assert [text.split("?")[0] for text in _blocks(task)[0][:2]] == [
        "Q: capital of France",
        "Q: capital of Italy",
    ]


def test_demonstrations_drawn_for_each_example_are_those_of_the_harness(tmp_path: Path) -> None:
    samplers = pytest.importorskip("lm_eval.api.samplers", reason="needs lm-evaluation-harness (extra: test)")
    rows = [{"prompt": f"Is {at} odd?", "completion": " Yes" if at % 2 else " No"} for at in range(9)]
    shown = {}
    for file in (None, "shots.jsonl"):
        (tmp_path / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _OTHERS))
        fewshot = {"count": 3, "draw": "each", "seed": 7} | ({"file": file} if file else {})
        task = _read(tmp_path, rows, fewshot=fewshot)
        assert len(task.examples) == len(rows)
        sampler = samplers.ContextSampler(_OTHERS if file else rows, rnd=7)
        for row, blocks in zip(rows, _blocks(task), strict=True):
            drawn = sampler.sample(3, eval_doc=None if file else row)
            assert blocks[:-1] == [one["prompt"] + one["completion"] for one in drawn]
        shown[file] = {tuple(blocks[:-1]) for blocks in _blocks(task)}
    assert all(len(found) > 3 for found in shown.values())


def test_a_description_is_put_before_the_demonstrations(tmp_path: Path) -> None:
    task = _read(tmp_path, _quiz(), fewshot={"count": 1}, description="Name capitals.\n", summary="words")
    example = task.examples[0]
    assert example.prompts[0].startswith("Name capitals.\nQ: capital") and example.preamble == 15
    assert example.without_demonstrations(1).prompts[0].count("Q:") == 1
    assert example.without_demonstrations(1).prompts[0].startswith("Name capitals.\nQ:")
    assert not any("summary" in text for text in task.warnings)
    doubtful = _read(tmp_path, _quiz(), description="A quiz on capitals.")
    assert any("call a text for people `summary`" in text for text in doubtful.warnings)


def test_shipped_tasks_describe_themselves_to_people_only() -> None:
    assert all(task.summary and not task.description for task in built_in_tasks().values())


_OTHERS = [{"prompt": f"Was {at} even?", "completion": " No" if at % 2 else " Yes"} for at in range(20, 27)]
