"""`gaguide eval clean`: results split by what `gaguide data overlap` found."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gaguide.cli import eval as eval_commands
from gaguide.data.overlap.report import EXAMPLES_FILE
from gaguide.errors import UserError
from gaguide.evaluate.results.intervals import proportion
from gaguide.evaluate.results.seen import split_results

PROMPTS = [f"Question {at}:" for at in range(6)]
RIGHT = [True, True, False, True, False, True]
SEEN = [True, True, True, False, False, False]
CHOICES = [" yes", " no"]


def folders(path: Path, changed: str | None = None, grouped: bool = False) -> tuple[Path, Path]:
    """An evaluation and an overlap; one prompt of the overlap is `changed`."""
    rows = [
        {
            "task": "quiz", "id": str(at), "kind": "classification",
            "group": f"g{at // 2}" if grouped else None,
            "content": f"hash {at}", "prompt": f"Shown: yes\n{prompt}",
            "continuations": CHOICES,
            "answer_index": 0, "log_probabilities": [-1.0, -2.0] if right else [-2.0, -1.0],
            "continuation_tokens": [1, 1], "predicted": 0 if right else 1,
            "predicted_norm": 0 if right else 1,
            "correct": right, "margin": 1.0 if right else -1.0, "value": 1.0, "finite": True,
            "text": None, "number": None, "answer": None,
        }
        for at, (prompt, right) in enumerate(zip(PROMPTS, RIGHT))
    ]  # fmt: skip
    found = [
        {"task": "quiz", "id": str(at), "prompts": [prompt], "continuations": CHOICES,
         "seen_words": seen, "seen_tokens": True}
        for at, (prompt, seen) in enumerate(zip([changed or PROMPTS[0], *PROMPTS[1:]], SEEN))
    ]  # fmt: skip
    (path / "results").mkdir()
    (path / "overlap").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), path / "results" / "examples.parquet")
    pq.write_table(pa.Table.from_pylist(found), path / "overlap" / EXAMPLES_FILE)
    return path / "results", path / "overlap"


def clean(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(eval_commands.app, ["clean", *map(str, arguments)])
    if isinstance(result.exception, UserError):
        raise result.exception
    return result.exit_code, result.output


def test_each_part_has_the_metric_of_its_examples(tmp_path: Path) -> None:
    results, overlap = folders(tmp_path)
    acc = next(one for one in split_results(results, overlap) if one.metric == "acc")
    assert acc.counts == {"all": 6, "clean": 3, "seen": 3} and acc.left_out == 0
    assert acc.values == {
        "all": proportion(RIGHT), "clean": proportion(RIGHT[3:]), "seen": proportion(RIGHT[:3])
    }  # fmt: skip
    by_tokens = next(one for one in split_results(results, overlap, "tokens") if one.metric == "acc")
    assert by_tokens.values["clean"] is None and by_tokens.counts["clean"] == 0


def test_intervals_are_over_groups(tmp_path: Path) -> None:
    results, overlap = folders(tmp_path, grouped=True)
    acc = next(one for one in split_results(results, overlap) if one.metric == "acc")
    assert acc.values["clean"] == proportion(RIGHT[3:], ["g1", "g2", "g2"])


def test_an_overlap_of_other_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of its examples differ from"):
        split_results(*folders(tmp_path, changed="Another question:"))


def test_the_command(tmp_path: Path) -> None:
    results, overlap = folders(tmp_path)
    code, output = clean(results, "--overlap", overlap)
    assert code == 0 and "0.6667" in output
    written = json.loads((results / "results_clean.json").read_text())
    assert {one["metric"] for one in written["metrics"]} >= {"acc"} and written["by"] == "words"
    with pytest.raises(UserError, match="must be one of words, tokens"):
        clean(results, "--overlap", overlap, "--by", "letters")
