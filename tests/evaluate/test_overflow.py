"""Examples longer than the model: reported with number, share, ids and tokens; cut, shortened or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, Results, evaluate


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    """A task with five demonstrations of some 40 tokens each, and one with a long prompt among short ones."""
    question = "Question {}: " + "word " * 30 + "\nAnswer:"
    rows = [
        {"prompt": question.format(at), "classes": [" yes", " no"], "answer_index": at % 2}
        for at in range(14)
    ]
    (tmp_path / "fs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "fs.yaml").write_text("name: fs\nfile: fs.jsonl\nfewshot: {count: 5}\n")
    prompts = ["Is it?", "IMPORTANT question. " + "filler " * 200, "Was it?"]
    rows = [{"prompt": text, "number": at} for at, text in enumerate(prompts)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(tmp_path / "fs.yaml"), str(tmp_path / "long.jsonl")]


def _evaluate(model: Path, tasks: list[str], output: Path, **settings: object) -> Results:
    return evaluate(model, tasks, output, World(), EvaluateSettings(**settings))


def test_what_is_cut_is_reported(
    gpt2_folder: Path, tasks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _evaluate(gpt2_folder, tasks, tmp_path / "out")
    said = capsys.readouterr().out
    assert "warning: task fs: 9 of 9 examples (100%) are longer than the model's 128 positions" in said
    assert "warning: task long: 1 of 3 examples (33%)" in said and "(id 1)" in said
    read = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    rows = pq.read_table(tmp_path / "out" / "examples.parquet").to_pylist()
    assert read["fs"]["truncated"]["count"] == 9 and read["fs"]["truncated"]["share"] == 1
    assert read["long"]["truncated"]["ids"] == ["1"]
    for name in ("fs", "long"):
        cut = [max(row["tokens_cut"]) for row in rows if row["task"] == name and any(row["tokens_cut"])]
        assert (min(cut), max(cut)) == (read[name]["truncated"]["least"], read[name]["truncated"]["most"])
    assert all(len(row["tokens_cut"]) == (2 if row["task"] == "fs" else 1) for row in rows)
    assert {row["demonstrations"] for row in rows if row["task"] == "fs"} == {5}


def test_whole_demonstrations_are_left_out(
    gpt2_folder: Path, tasks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _evaluate(gpt2_folder, tasks, tmp_path / "out", on_overflow="drop-demonstrations").tasks["fs"]
    assert not any(any(one.tokens_cut) for one in found.scored)
    assert all(one.example.prompts[0].startswith("Question") for one in found.scored)
    (answers,) = {one.example.prompts[0].count("Answer:") for one in found.scored}
    dropped = 6 - answers  # of five, and the example itself
    assert 0 < dropped < 5 and f"have {dropped} fewer demonstrations" in capsys.readouterr().out
    fewer = [one.without_demonstrations(dropped).prompts for one in found.data.examples]
    assert fewer == [one.example.prompts for one in found.scored]


def test_an_evaluation_may_refuse_examples_that_are_too_long(
    gpt2_folder: Path, tasks: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        _evaluate(gpt2_folder, tasks, tmp_path / "out", on_overflow="fail")
    assert [fault.field for fault in caught.value.faults] == ["--on-overflow"] * 2
    with pytest.raises(UserError, match="must be one of cut, drop-demonstrations, fail"):
        _evaluate(gpt2_folder, tasks, tmp_path / "out", on_overflow="ignore")
