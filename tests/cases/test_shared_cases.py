"""Inputs that once went wrong, kept beside the repository (shared/cases): each gives the right result today.

`HELD_BY` names the tests of each case. The tests in this file read the case's own files; the others make
inputs of the same kind.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gaguide.config import ModelSection
from gaguide.data import read_manifest
from gaguide.distributed import World
from gaguide.errors import EXIT_NOT_FINITE, EXIT_USER_ERROR
from gaguide.log import MetricsFile, read_metrics
from gaguide.model import find_model
from tests.cases.held_by import HELD_BY
from tests.data.test_data_build import tokens_of
from tests.evaluate.conftest import save_gpt2
from tests.support.ranks import REPOSITORY

CASES = REPOSITORY.parent / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="needs shared/cases beside the repository")


@needs_cases
def test_every_case_has_tests() -> None:
    assert {path.name for path in CASES.iterdir() if path.is_dir()} == set(HELD_BY)


def test_the_tests_exist() -> None:
    missing = [name for names in HELD_BY.values() for name in names if not _exists(*name.split("::"))]
    assert not missing


def _exists(file: str, function: str) -> bool:
    tree = ast.parse((REPOSITORY / "tests" / file).read_text("utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-2 of 128 positions."""
    return save_gpt2(tmp_path_factory.mktemp("model"))


class Program:
    """The commands `gaguide` and `evaluate` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str]:
        """Exit code and everything printed, without line breaks inside sentences."""
        from gaguide.cli import main

        self._monkeypatch.setattr(sys, "argv", ["gaguide", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), self._printed()

    def evaluate(self, *arguments: str | Path) -> tuple[int, str]:
        from gaguide.evaluate.command import main

        code = main(list(map(str, arguments)))
        return code, self._printed()

    def _printed(self) -> str:
        said = self._capsys.readouterr()
        return re.sub(r"\s+", " ", said.out + said.err)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("sources", "documents", "dropped"),
    [
        (["bom_jsonl/a.jsonl"], 3, {}),
        (["bom_jsonl/a.txt"], 1, {}),
        (["json_array/pretty.json"], 3, {}),
        (["json_array/array_row_per_line.json"], 3, {}),
        (["parquet_large_binary/a.parquet"], 3, {}),
        (["parquet_null_file/a.parquet", "parquet_null_file/b.parquet"], 3, {"not_text": 2}),
        (["symlinked_subfolder/folder"], 4, {}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
@needs_cases
def test_documents_of_files(
    sources: list[str], documents: int, dropped: dict[str, int], embedded_shards: Path, tmp_path: Path,
    program: Program,
) -> None:  # fmt: skip
    shutil.copytree(CASES / sources[0].partition("/")[0], tmp_path / "case", symlinks=True)
    link = tmp_path / "case" / "folder" / "sub"
    if link.is_file():  # a copy of the cases that could not keep links has their targets as text
        target = link.read_text()
        link.unlink()
        link.symlink_to(target)
    given = [part for name in sources for part in ("--source", tmp_path / "case" / name.partition("/")[2])]
    code, said = program(
        "data", "build", *given, "--tokenizer", embedded_shards / "tokenizer", "--output", tmp_path / "out",
        "--workers", "1", "--validation-fraction", "0",
    )  # fmt: skip
    manifest = read_manifest(tmp_path / "out")
    assert (code, manifest.documents, manifest.dropped) == (0, documents, dropped), said
    tokenizer = AutoTokenizer.from_pretrained(embedded_shards / "tokenizer")
    text = "".join(map(tokenizer.decode, tokens_of(tmp_path / "out", "train")))
    assert "\ufeff" not in text and "\ufffd" not in text
    for reason, count in dropped.items():
        assert reason.replace("_", " ") in said.replace("_", " ") and str(count) in said


@needs_cases
def test_documents_begin_as_the_tokenizer_says(tmp_path: Path, program: Program) -> None:
    folder = CASES / "bos_missing" / "tokenizer"
    (tmp_path / "a.jsonl").write_text('{"text": "a b c"}\n{"text": "b c a"}\n')
    code, said = program(
        "data", "build", "--source", tmp_path / "a.jsonl", "--tokenizer", folder, "--bos", "--workers", "1",
        "--output", tmp_path / "out", "--validation-fraction", "0",
    )  # fmt: skip
    assert code == 0, said
    begin = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<s>")
    assert [ids[0] for ids in tokens_of(tmp_path / "out", "train")] == [begin] * 2


@needs_cases
def test_duplicate_columns_are_one_message(embedded_shards: Path, tmp_path: Path, program: Program) -> None:
    code, said = program(
        "data", "build", "--source", CASES / "parquet_duplicate_column" / "a.parquet",
        "--tokenizer", embedded_shards / "tokenizer", "--output", tmp_path / "out", "--workers", "1",
    )  # fmt: skip
    assert code == EXIT_USER_ERROR and "2 columns" in said and "Traceback" not in said, said


@needs_cases
def test_a_replaced_source_is_refused(embedded_shards: Path, tmp_path: Path, program: Program) -> None:
    case, source = CASES / "stale_source", tmp_path / "source"
    source.mkdir()
    command = (
        "data", "build", "--source", source, "--tokenizer", embedded_shards / "tokenizer",
        "--output", tmp_path / "out", "--workers", "1", "--validation-fraction", "0",
    )  # fmt: skip
    shutil.copyfile(case / "v1.jsonl", source / "a.jsonl")
    assert program(*command)[0] == 0
    shutil.copyfile(case / "v2.jsonl", source / "a.jsonl")
    code, said = program(*command)
    assert code == EXIT_USER_ERROR and "content of the source has changed" in said, said


@needs_cases
def test_a_damaged_line_costs_one_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    shutil.copyfile(CASES / "metrics_damaged_line" / "metrics.jsonl", path)
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 5, 6, 7, 8]
    file = MetricsFile(path, 8)
    file.append({"step": 9, "loss": 7.0})
    file.sync()
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 5, 6, 7, 8, 9]


@needs_cases
def test_a_plain_python_in_an_interactive_allocation_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split((CASES / "salloc-interactive-hang" / "run.sh").read_text())
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    variables = dict(word.split("=", 1) for word in words if re.match(r"SLURM_\w+=", word))
    assert variables["SLURM_NTASKS"] == "4"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    world = World.from_environment()
    assert (world.rank, world.size) == (0, 1)


@needs_cases
def test_generation_settings_are_kept(tmp_path: Path) -> None:
    given, model = CASES / "generation_config" / "generation_config.json", save_gpt2(tmp_path / "model")
    shutil.copyfile(given, model / "generation_config.json")
    found = find_model(ModelSection(name=str(model)), 50257, 50256)
    assert found.generation == json.loads(given.read_text())


@needs_cases
def test_no_example_is_among_its_demonstrations(model: Path, tmp_path: Path, program: Program) -> None:
    case = CASES / "fewshot-leak"
    code, said = program.evaluate(
        "--model", model, "--tasks", case / "leak.yaml", "--output", tmp_path / "out"
    )
    assert code == 0, said
    rows = pq.read_table(tmp_path / "out" / "examples.parquet").to_pylist()
    for row in rows:
        *shown, asked = row["prompt"].split("Q: ")[1:]
        assert shown and not any(text.startswith(asked) for text in shown), row["prompt"]
    code, said = program.evaluate(
        "--model", model, "--tasks", case / "leak2.yaml", "--output", tmp_path / "out2"
    )
    assert code == EXIT_USER_ERROR and "fewer than 3" in said, said


@needs_cases
def test_examples_that_are_cut_are_named(tmp_path: Path, program: Program) -> None:
    case, model = CASES / "truncation-silent", save_gpt2(tmp_path / "model", positions=64)
    for task, shots in (("fs", "5"), ("long", "0")):
        output = tmp_path / task
        code, said = program.evaluate(
            "--model", model, "--tasks", case / f"{task}.jsonl", "--shots", shots, "--output", output
        )
        assert code == 0, said
        (read,) = json.loads((output / "results.json").read_text())["tasks"].values()
        cut = [
            row for row in pq.read_table(output / "examples.parquet").to_pylist() if any(row["tokens_cut"])
        ]
        assert cut and read["truncated"]["count"] == len(cut)
        assert f"warning: task {task}: {len(cut)} of" in said and "longer than the model's" in said


@needs_cases
def test_continuations_that_join_their_prompt(model: Path, tmp_path: Path, program: Program) -> None:
    code, said = program.evaluate(
        "--model", model, "--tasks", CASES / "boundary-remedy" / "boundary.jsonl", "--output", tmp_path / "o"
    )
    assert code == EXIT_USER_ERROR, said
    assert "joins the" in said and "begin it with a space" in said and "delimiter" in said, said


@needs_cases
def test_a_model_of_nan_has_no_accuracy(model: Path, tmp_path: Path, program: Program) -> None:
    case, broken = CASES / "nan-model-accuracy", AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        broken.transformer.h[-1].mlp.c_fc.weight[0, 0] = float("nan")
    broken.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "nan")
    code, said = program.evaluate(
        "--model", tmp_path / "nan", "--tasks", case / "cls.jsonl", case / "seq.jsonl",
        "--output", tmp_path / "o",
    )  # fmt: skip
    assert code == EXIT_NOT_FINITE, said
    tasks = json.loads((tmp_path / "o" / "results.json").read_text())["tasks"]
    assert {name: task["not_finite"]["count"] for name, task in tasks.items()} == {"cls": 3, "seq": 1}
    values = [metric["value"] for task in tasks.values() for metric in task["metrics"].values()]
    assert not any(value is not None for value in values)


@needs_cases
def test_another_model_does_not_replace_results(model: Path, tmp_path: Path, program: Program) -> None:
    case, other = CASES / "nan-model-accuracy", save_gpt2(tmp_path / "other", seed=1)
    tasks = {name: case / f"{name}.jsonl" for name in ("cls", "seq")}
    assert program.evaluate("--model", model, "--tasks", tasks["cls"], "--output", tmp_path / "o")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir() if path.is_file()}
    code, said = program.evaluate("--model", other, "--tasks", tasks["seq"], "--output", tmp_path / "o")
    assert code == EXIT_USER_ERROR and "another folder with --output" in said, said
    assert {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir() if path.is_file()} == before
