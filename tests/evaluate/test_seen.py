"""`gaguide eval clean`: results split by what `gaguide data overlap` found."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gaguide.cli import eval as eval_commands
from gaguide.data.overlap.find import find_overlap
from gaguide.data.overlap.report import EXAMPLES_FILE
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate import EvaluateSettings, evaluate
from gaguide.evaluate.results.intervals import proportion
from gaguide.evaluate.results.seen import split_results
from gaguide.evaluate.tasks.texts import evaluation_texts

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
         "comparable": at < 4, "seen_words": seen, "seen_tokens": True}
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


def test_examples_that_are_too_short_to_be_looked_for_are_counted(tmp_path: Path) -> None:
    results, overlap = folders(tmp_path)
    assert {one.too_short for one in split_results(results, overlap)} == {2}
    assert {one.too_short for one in split_results(results, overlap, "tokens")} == {0}
    assert "quiz: 2 of the clean examples are too short" in clean(results, "--overlap", overlap)[1]


def test_losses_of_a_unit_count_each_document_with_its_units(tmp_path: Path) -> None:
    """As in results.json: the mean of the documents' rates would be that of other text."""
    results, overlap = folders(tmp_path)
    texts, values = ["one two", "one two three four five six", "one"], [4.0, 30.0, 1.0]
    rows = [
        {"task": "quiz", "id": str(at), "kind": "rolling", "content": f"{at}", "prompt": "",
         "continuations": [text], "answer_index": None, "value": value, "finite": True, "predicted": None}
        for at, (text, value) in enumerate(zip(texts, values, strict=True))
    ]  # fmt: skip
    found = [{"task": "quiz", "id": row["id"], "prompts": [""], "continuations": row["continuations"],
              "comparable": True, "seen_words": row["id"] == "2"} for row in rows]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(found), overlap / EXAMPLES_FILE)
    pq.write_table(pa.Table.from_pylist(rows), results / "examples.parquet")
    loss = next(one for one in split_results(results, overlap) if one.metric == "word_loss")
    wanted = {"all": 35 / 9, "clean": 34 / 8, "seen": 1.0}
    assert {name: one and one.value for name, one in loss.values.items()} == pytest.approx(wanted)
    assert "nan" not in clean(results, "--overlap", overlap)[1]


def test_texts_without_a_prompt_are_looked_for_and_split(
    gpt2_folder: Path, embedded_shards: Path, tmp_path: Path
) -> None:
    """Those of kind near_cue; of all examples the metrics are those of results.json."""
    texts = [
        "it is not a list but a set of names that do not change here",
        "it is not",
        "a list of it is set",
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "near.yaml").write_text(
        "name: near\nkind: near_cue\nfile: texts.jsonl\nlexicon: negation\ncue_mode: pieces\n"
    )
    found = evaluation_texts([str(tmp_path / "near.yaml")])
    assert [one.texts for one in found] == [(text,) for text in texts]
    overlap = tmp_path / "overlap"
    find_overlap([str(embedded_shards)], found, overlap, "validation", 1)
    results = evaluate(
        gpt2_folder, [str(tmp_path / "near.yaml")], tmp_path / "out", World(), EvaluateSettings()
    )
    split = {one.metric: one for one in split_results(tmp_path / "out", overlap)}
    for name, metric in results.tasks["near"].metrics.items():
        whole = split[name].values["all"]
        assert whole is not None and whole.value == pytest.approx(metric.value)
    assert split["loss"].too_short == 2


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
