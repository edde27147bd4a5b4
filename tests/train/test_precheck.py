"""Mistakes in settings, names and paths come in one report, before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gaguide.errors import EXIT_USER_ERROR, UserError
from gaguide.train.command import main
from gaguide.train.precheck import precheck
from tests.support.ranks import DS_CONFIGS, REPOSITORY, rank_environment

ZERO2 = DS_CONFIGS / "zero2.json"

SCRIPT = """
import sys
from gaguide.train.command import main

code = "help"
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    assert ended.code == 0
heavy = {"torch", "transformers", "deepspeed", "scipy", "pandas", "pyarrow"} & sys.modules.keys()
assert not heavy, heavy
print("code", code)
"""


def fields(
    changes: dict[str, str], json: Path = ZERO2, ranks: int = 2, config: Path | None = None
) -> set[str]:
    with pytest.raises(UserError) as error:
        precheck(config, changes, json, ranks)
    return {fault.field for fault in error.value.faults}


def test_faults_of_every_kind_come_at_once(tmp_path: Path) -> None:
    changes = {
        "train.learning_rate": "fast",
        "trian.steps": "3",
        "data.shards": str(tmp_path / "none"),
        "guidance.experiment": "5-everything",
        "train.global_batch": "7",
        "model.name": str(tmp_path / "no-model"),
        "model.init": "pretrained",
        "output": str(tmp_path / "file" / "run"),
        "checkpoint.keep_best": "1",
        "validation.every": "0",
    }
    (tmp_path / "file").write_text("")
    assert fields(changes, json=tmp_path / "none.json") == {
        "train.learning_rate",
        "trian",
        "data.shards",
        "guidance.experiment",
        "train.global_batch",
        "model.name",
        "output",
        "checkpoint.keep_best",
        "--deepspeed",
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_rule_between_fields_does_not_hide_their_values(tmp_path: Path) -> None:
    changes = {"guidance.experiment": "5-everything", "guidance.lexicons": str(tmp_path / "none.yaml")}
    assert {"guidance", "guidance.experiment", "guidance.lexicons"} <= fields(changes)


def test_an_unreadable_recipe_does_not_hide_mistakes_on_the_command_line(tmp_path: Path) -> None:
    found = fields({"seed": "-1"}, json=tmp_path / "none.json", config=tmp_path / "none.yaml")
    assert found == {"--config", "seed", "--deepspeed"}


def test_patterns_of_a_plan_and_folders_of_a_mixture_are_named(tmp_path: Path) -> None:
    changes = {
        "guidance.experiment": "finetuned",
        "guidance.plan": "[{pattern: self, heads: 0}, {pattern: contrst, heads: 1}, "
        "{pattern: offset--1, heads: 2}]",
        "data.shards": "null",
        "data.mixture": f"[{{shards: {tmp_path}, weight: 1}}, {{shards: {tmp_path}/b, weight: 1}}]",
    }
    assert fields(changes) == {
        "guidance.plan.1.pattern",
        "guidance.plan.2.pattern",
        "data.mixture.0.shards",
        "data.mixture.1.shards",
    }


def test_the_json_is_compared_with_the_run(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"train_batch_size": 8, "zero_optimisation": {}, "bf16": 3}')
    assert fields({}, json=wrong) == {
        "train_batch_size (DeepSpeed JSON)",
        "zero_optimisation (DeepSpeed JSON)",
        "bf16 (DeepSpeed JSON)",
    }


def test_a_resumed_run_needs_no_model_folder(tmp_path: Path) -> None:
    changes = {"model.name": str(tmp_path / "gone"), "model.init": "pretrained", "output": str(tmp_path)}
    assert fields(changes) == {"model.name"}
    (tmp_path / "checkpoints" / "step-00000002").mkdir(parents=True)
    assert precheck(None, changes, ZERO2, 2).model.name == str(tmp_path / "gone")


def test_whole_numbers_may_have_an_exponent() -> None:
    run = precheck(None, {"train.steps": "1e9", "data.block_length": "1.28e2", "seed": "3e0"}, ZERO2, 2)
    assert (run.train.steps, run.data.block_length, run.seed) == (10**9, 128, 3)
    assert "train.steps" in fields({"train.steps": "1.5e0"})


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("", 2, "--deepspeed"),
        ("--help", "help", "--train.learning_rate"),
        ("--deepspeed zero2 --train.stps 3", 2, "did you mean 'steps'?"),
        ("--deepspeed zero2 --config nothing --data.shards nowhere", 2, "gpt2-4-transition"),
        ("--deepspeed zero9 --train.steps x --guidance.experiment 5-x", 2, "4-transition"),
    ],
)
def test_mistakes_in_arguments_are_reported_without_torch(
    tmp_path: Path, arguments: str, code: object, message: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments.split()],
        cwd=tmp_path,
        env=rank_environment() | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"code {code}" in done.stdout
    assert message in done.stdout + done.stderr


def test_one_start_names_what_needs_the_model_as_well(
    embedded_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "data.shards": str(embedded_shards),
        "output": str(tmp_path / "run"),
        "guidance.experiment": "5-everything",
        "checkpoint.keep_best": "1",
        "validation.every": "0",
        "data.block_length": "999",
        "guidance.layers": "all",
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    assert main(["--deepspeed", "zero9", *arguments]) == EXIT_USER_ERROR
    said = capfd.readouterr().err
    early, _, later = said.partition("looking for further problems")
    assert all(field in early for field in ("--deepspeed", "guidance.experiment", "checkpoint.keep_best"))
    assert "data.block_length" in later and "guidance.experiment" not in later
    assert not (tmp_path / "run").exists()


def test_masked_addresses_must_be_given_again() -> None:
    changes = {"data.shards": "null", "data.source.files": "https://***@host/a.jsonl, b.jsonl"}
    assert "data.source.files" in fields(changes)
    assert "data.shards" in fields({"data.shards": "s3://***@bucket/shards?X-Amz-Signature=***"})


@pytest.mark.processes
def test_a_dry_run_reports_and_writes_nothing(embedded_shards: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gaguide.train", "--deepspeed", "zero2", "--dry-run"]
    settings = [
        "--data.shards",
        str(embedded_shards),
        "--output",
        str(tmp_path / "run"),
        "--train.steps",
        "2e1",
    ]
    environment = rank_environment() | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, *settings], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for text in ("steps: 20", "train_batch_size", "20 steps", "held out", "GB", "input_ids [16, 128]"):
        assert text in done.stdout, text
    assert not list(tmp_path.iterdir())
