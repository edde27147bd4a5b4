"""A study's identity is content: of tasks, models, lexicons, and of every example that is compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from gaguide.data import BuildRequest, build_shards
from gaguide.data.build.python_reference import train_embedded_tokenizer
from gaguide.evaluate.tasks.example import Example
from gaguide.files import write_json
from gaguide.model import SIZES, scratch_config
from gaguide.model.content import folder_record
from gaguide.study.collect import collect
from gaguide.study.content import ContentHashes
from gaguide.study.file import load_study
from gaguide.study.grid import Cell, Grid, make_grid
from gaguide.study.record_files import read_study, tables_folder
from gaguide.study.run import Runner
from gaguide.study.state import (
    ablation_file,
    needs_ablation,
    read_state,
    stale_ablation,
    stored_state,
    write_state,
)
from tests.study.cells import TASK, finish

STUDY: dict[str, Any] = {
    "name": "small",
    "sizes": ["pico"],
    "experiments": ["original", "finetuned", "1-negation"],
    "seeds": [0, 1],
    "data": {"shards": "embedded", "block_length": 32},
    "pretrain": {"tokens": 512},
    "tokens": 384,
    "train": {"global_batch": 4},
    "ds_config": "ds_configs/zero0.json",
}
PROMPTS = [f"The {at}th value is {'not ' if at % 2 else ''}bound, so it is" for at in range(20)]


def make(folder: Path, **changes: Any) -> Grid:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({**STUDY, "output": str(folder / "out"), "tasks": ["demo"], **changes}))
    return make_grid(load_study(file, {}))


def finished(folder: Path, bad: str = "", examples: range = range(0), **changes: Any) -> Grid:
    """A finished study; cells whose id contains `bad` have no finite score for the examples in `examples`."""
    grid = make(folder, **changes)

    def margin(cell: Cell, at: int) -> float:
        return float("nan") if bad and bad in cell.id and at in examples else 1.0 - at % 3

    finish(grid, train_embedded_tokenizer(300), PROMPTS, margin, lambda cell: 5.0)
    return grid


def states(grid: Grid) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for cell in grid.cells:
        found.setdefault(cell.role, set()).add(read_state(grid, cell).state)
    return found


def quiz(path: Path, prefix: str = "") -> None:
    rows = [{"prompt": prefix + prompt, "classes": [" a", " b"], "answer_index": 1} for prompt in PROMPTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


DONE, AGAIN = {"base": {"done"}, "original": {"done"}, "tuned": {"done"}}, {
    "base": {"done"}, "original": {"pending"}, "tuned": {"pending"},
}  # fmt: skip


def test_cells_are_evaluated_again_where_a_tasks_content_changes(tmp_path: Path) -> None:
    data, pool, task = tmp_path / "quiz.jsonl", tmp_path / "pool.jsonl", tmp_path / "quiz.yaml"
    quiz(data)
    quiz(pool, "Shown: ")
    written = {"name": "quiz", "kind": "classification", "file": data.name, "fewshot": {"count": 2}}
    task.write_text(yaml.safe_dump(written | {"fewshot": {"count": 2, "file": pool.name}}))
    tasks = [str(task)]
    finished(tmp_path, tasks=tasks)
    assert states(make(tmp_path, tasks=tasks)) == DONE
    text = data.read_text()
    quiz(data, "Corrected: ")
    assert states(make(tmp_path, tasks=tasks)) == AGAIN
    data.write_text(text)  # another date, the same content
    assert states(make(tmp_path, tasks=tasks)) == DONE
    quiz(pool, "Corrected: ")
    assert states(make(tmp_path, tasks=tasks)) == AGAIN
    quiz(pool, "Shown: ")
    described = yaml.safe_load(task.read_text()) | {"summary": "Words for people."}
    task.write_text(yaml.safe_dump(described))
    assert states(make(tmp_path, tasks=tasks)) == DONE
    task.write_text(yaml.safe_dump(described | {"delimiter": " "}))
    assert states(make(tmp_path, tasks=tasks)) == AGAIN


def test_a_result_of_other_data_is_not_done_whatever_the_record_says(tmp_path: Path) -> None:
    data = tmp_path / "quiz_classification.jsonl"
    quiz(data)
    grid = finished(tmp_path, tasks=[str(data)])
    cell = grid.cells[-1]
    results = grid.path(cell) / "evaluation" / "results.json"
    tree = json.loads(results.read_text())
    tree["tasks"][TASK]["sha256"] = "0" * 64
    write_json(results, tree)
    assert read_state(grid, cell).state == "pending"


def test_records_of_older_versions_are_checked_by_the_data_that_the_results_name(tmp_path: Path) -> None:
    data = tmp_path / "quiz_classification.jsonl"
    quiz(data)
    grid = finished(tmp_path, tasks=[str(data)])
    cell = grid.cells[-1]
    old = json.loads((grid.path(cell) / "state.json").read_text())
    del old["contents"]
    write_json(grid.path(cell) / "state.json", old)
    assert read_state(grid, cell).state == "done"


@pytest.mark.processes
def test_an_evaluation_of_other_content_is_kept_apart(tmp_path: Path) -> None:
    data = tmp_path / "quiz_classification.jsonl"
    quiz(data)
    finished(tmp_path, tasks=[str(data)])
    quiz(data, "Corrected: ")
    grid = make(tmp_path, tasks=[str(data)])
    cell = next(cell for cell in grid.cells if cell.role == "original")
    Runner(grid, before=["false"]).run([cell])  # `false EVALUATION…`: nothing is evaluated
    assert not (grid.path(cell) / "evaluation").exists()
    assert (grid.path(cell) / "evaluation.replaced-1" / "results.json").is_file()
    assert read_state(grid, cell).state == "failed"


def test_other_content_under_the_same_path_makes_other_cells(tmp_path: Path) -> None:
    model, words = tmp_path / "model", tmp_path / "words.yaml"
    scratch_config(SIZES["pico"], 300, None).save_pretrained(model)
    (model / "model.safetensors").write_bytes(b"\0" * 1000)
    words.write_text("mine: [bound]\n")
    plan = {"lexicons": str(words), "plan": [{"pattern": "mine", "heads": [0]}]}
    changes = {
        "pretrain": None, "seeds": [0], "sizes": [{"name": "local", "model": str(model)}],
        "experiments": ["original", "finetuned", {"name": "own", "guidance": plan}],
    }  # fmt: skip

    def ids() -> dict[str, str]:
        return {cell.experiment: cell.id for cell in make(tmp_path, **changes).cells}

    first = ids()
    (model / "model.safetensors").write_bytes(b"\0" * 1000)  # the same content, written again
    (model / "README.md").write_text("a card\n")
    assert ids() == first
    (model / "model.safetensors").write_bytes(b"\0" * 999 + b"\1")
    second = ids()
    assert not set(first.values()) & set(second.values())
    words.write_text("mine: [not]\n")
    third = ids()
    assert third["own"] != second["own"] and third["finetuned"] == second["finetuned"]


def test_a_hash_is_remembered_only_for_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("one")
    hashes = ContentHashes(tmp_path)
    first = hashes.file(file)
    hashes.save()
    assert ContentHashes(tmp_path).file(file) == first
    file.write_text("two")
    assert ContentHashes(tmp_path).file(file) != first


def test_an_example_is_known_by_what_it_asks() -> None:
    one = Example("1", ("p", "q"), (" a", " b"), 0, segments=(((1, 2), (2, 3)),))
    key = one.key("logodds")
    assert key == replace(one, id="2", line=3, demonstration_ends=(1,)).key("logodds")
    assert key != one.key("absolute_logodds")
    for other in (
        {"prompts": ("p", "r")},
        {"continuations": (" b", " a")},
        {"answer_index": 1},
        {"number": 1.0},
        {"segments": (((1, 2), (2, 4)),)},
    ):
        assert replace(one, **other).key("logodds") != key


def test_other_examples_under_the_same_ids_are_never_paired(tmp_path: Path) -> None:
    """Evaluated on two versions of the data while the data's own file cannot be read any more."""
    grid = finished(tmp_path)
    odd = next(cell for cell in grid.cells if cell.experiment == "1-negation" and cell.seed == 1)
    path = grid.path(odd) / "evaluation" / "examples.parquet"
    table = pq.read_table(path)
    contents = [text[::-1] for text in table["content"].to_pylist()]
    pq.write_table(
        table.set_column(table.schema.get_field_index("content"), table.schema.field("content"), [contents]),
        path,
    )
    records = collect(grid)
    assert [(row.cell, row.task) for row in records.left_out] == [(odd.id, TASK)]
    assert "not those of 5 other cells" in records.left_out[0].reason
    rows = [row for row in records.comparisons if row.experiment == "1-negation" and row.task == TASK]
    assert {row.seed for row in rows if row.level == "seed"} == {0}
    assert {(row.seeds, row.left_out) for row in rows if row.level == "seeds"} == {(1, 1)}
    assert all(row.seeds == 1 for row in records.changes)


@pytest.mark.parametrize("wholly", [True, False])
def test_what_is_not_finite_is_left_out_and_named(tmp_path: Path, wholly: bool) -> None:
    grid = finished(tmp_path, "1-negation-s1", range(20) if wholly else range(3))
    records = collect(grid)
    odd = next(cell.id for cell in grid.cells if "1-negation-s1" in cell.id)
    (row,) = records.left_out
    assert row.cell == odd and row.task == (None if wholly else TASK)
    assert ("diverged" in row.reason) == wholly and ("3 of 20" in row.reason) != wholly
    assert not any(result.cell == odd and result.task == TASK for result in records.results)
    mean = next(m for m in records.means if (m.experiment, m.task, m.metric) == ("1-negation", TASK, "acc"))
    assert (mean.seeds, mean.left_out) == (1, 1)
    assert next(m for m in records.means if m.experiment == "finetuned").left_out == 0
    assert {head.cell for head in records.attention if head.cell == odd} == (set() if wholly else {odd})
    assert read_study(grid.folder) == records


def test_a_diverged_training_is_left_out_as_a_whole(tmp_path: Path) -> None:
    grid = finished(tmp_path)
    odd = next(cell for cell in grid.cells if "finetuned-s0" in cell.id)
    summary = grid.path(odd) / "summary.json"
    tree = json.loads(summary.read_text())
    tree["validation"]["after"]["lm_loss"] = None
    write_json(summary, tree)
    records = collect(grid)
    assert [(row.cell, row.task) for row in records.left_out] == [(odd.id, None)]
    assert "held-out loss is not finite" in records.left_out[0].reason
    assert not any(row.cell == odd.id for row in records.results)


def test_a_collection_that_fails_leaves_the_whole_set_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = finished(tmp_path)
    first = collect(grid)
    tables = tables_folder(grid.folder)
    cell = grid.cells[-1]
    write_state(grid.path(cell), stored_state(grid.path(cell)))
    results = grid.path(cell) / "evaluation" / "results.json"
    results.write_text(results.read_text().replace('"count": 20', '"count": "twenty"'))  # fits no column
    with pytest.raises(Exception, match="twenty"):
        collect(grid)
    assert read_study(grid.folder) == first and tables_folder(grid.folder) == tables
    results.write_text(results.read_text().replace('"count": "twenty"', '"count": 20'))
    collect(grid)
    collect(grid)
    folders = sorted(path.name for path in grid.folder.glob("tables-*"))
    assert len(folders) == 2 and tables_folder(grid.folder).name == folders[-1]


def test_a_cell_trained_again_is_evaluated_and_ablated_again(tmp_path: Path) -> None:
    """Its records are of weights, not of the place where these were."""
    made = finished(tmp_path)
    cell = next(one for one in made.cells if one.experiment == "1-negation")
    folder, weights = made.path(cell), made.path(cell) / "model" / "model.safetensors"
    weights.write_bytes(b"first")
    identity = folder_record(folder / "model")
    results = folder / "evaluation" / "results.json"
    write_json(results, json.loads(results.read_text()) | {"identity": identity})
    ablated = {"models": [{"identity": identity}], "settings": {"text_fingerprint": "d"}}
    ablation_file(folder).parent.mkdir()
    write_json(ablation_file(folder), ablated)
    write_state(folder, replace(stored_state(folder), ablation=made.ablation))
    assert read_state(made, cell).state == "done" and not needs_ablation(made, cell)

    write_json(ablation_file(folder), ablated | {"settings": {"text_fingerprint": "e"}})
    assert needs_ablation(made, cell) and stale_ablation(made, cell) == "its ablation is on other text"
    write_json(ablation_file(folder), ablated)
    weights.write_bytes(b"again")
    assert read_state(made, cell).state == "pending" and needs_ablation(made, cell)
    assert stale_ablation(made, cell) == "its ablation is of a model with other content (model.safetensors)"
    (row,) = [row for row in collect(made).left_out if row.task == "removal of heads"]
    assert row.cell == cell.id and "run removes its heads again" in row.reason
    weights.unlink()  # nothing can be known of it: what was recorded stands
    assert read_state(made, cell).state == "done" and not needs_ablation(made, cell)


def test_text_that_a_study_tokenises_is_part_of_the_ids_of_its_cells(tmp_path: Path) -> None:
    text, shards = tmp_path / "text.jsonl", tmp_path / "shards"
    train_embedded_tokenizer(300).save_pretrained(tmp_path / "tokenizer")
    source = {"files": [str(text)], "tokenizer": str(tmp_path / "tokenizer"), "validation_fraction": 0.2}
    data = {"source": source, "shards": str(shards), "block_length": 32}

    def ids() -> list[str]:
        return [cell.id for cell in make(tmp_path, data=data).cells]

    def write(word: str) -> None:
        text.write_text("".join(f'{{"text": "{word} is {at} not {at + 1}"}}\n' for at in range(40)))

    write("this")
    before = ids()
    write("that")
    assert not set(ids()) & set(before)
    write("this")
    build_shards(
        BuildRequest((str(text),), shards, str(tmp_path / "tokenizer"), validation_fraction=0.2, workers=1)
    )
    assert ids() == before  # a study that goes on finds its finished cells
    text.unlink()
    assert ids() == before
