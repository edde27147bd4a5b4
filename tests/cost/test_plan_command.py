"""`gaguide plan` on its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from click.testing import Result
from transformers import LlamaConfig
from typer.testing import CliRunner

from gaguide.cli import plan
from gaguide.cost import CostRequest, estimate
from gaguide.errors import UserError
from gaguide.model import SIZES, scratch_config, shape_of
from tests.support.ranks import DS_CONFIGS, REPOSITORY

RECIPE = REPOSITORY / "launch" / "recipes" / "gpt2-medium-4-transition.yaml"


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(plan.plan)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def record(*arguments: object) -> dict:  # type: ignore[type-arg]
    result = run(*arguments, "--json")
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def faults(*arguments: object) -> set[str]:
    result = run(*arguments)
    assert isinstance(result.exception, UserError)
    return {fault.field for fault in result.exception.faults}


def test_table_names_memory_time_and_hours() -> None:
    result = run("--model", "gpt2-xl", "--gpus", 8, "--nodes", 2, "--gpu", "a100-80", "--tokens", "1e9")
    assert result.exit_code == 0
    for word in ("activations", "logits", "optimizer", "fits", "GPU-hours", "not a measurement"):
        assert word in result.stdout
    short = run("--model", "gpt2", "--tokens", "1e3")
    assert "0.0 (0.0 to 0.0)" not in short.stdout, "one step takes seconds"


def test_json_equals_the_function_where_all_is_given() -> None:
    answer = record(
        "--model", "gpt2", "--gpus", 4, "--stage", 2, "--micro-batch", 4, "--global-batch", 16,
        "--no-checkpointing", "--offload-optimizer", "none", "--tokens", "1e8",
    )  # fmt: skip
    shape = shape_of(scratch_config(SIZES["gpt2"], 50_257, None))
    same = estimate(CostRequest(shape, gpus=4, micro_batch=4, global_batch=16, tokens=10**8))
    assert answer.pop("chosen") == [] and answer.pop("measured") is None
    low, high = answer.pop("tokens_per_second_range")
    assert low < same.tokens_per_second < high
    assert answer == json.loads(json.dumps(same.as_record()))


def test_a_run_and_a_deepspeed_file_fix_their_settings() -> None:
    answer = record("--config", RECIPE, "--deepspeed", DS_CONFIGS / "zero3.json", "--gpus", 2)
    assert answer["chosen"] == []
    assert answer["request"]["zero_stage"] == 3 and answer["request"]["guided_heads"] == 4
    assert answer["request"]["model"]["parameters"] == 354_823_168


def test_a_folder_needs_a_configuration_only(tmp_path: Path) -> None:
    LlamaConfig(num_hidden_layers=4, hidden_size=512, num_attention_heads=8).save_pretrained(tmp_path)
    assert record("--model", tmp_path)["request"]["model"]["kind"] == "llama"


def test_faults_of_options_and_files_are_raised_together(tmp_path: Path) -> None:
    found = faults(
        "--model", "gpt2", "--gpu", "a100", "--gpus", 0, "--precision", "int8", "--stage", 7,
        "--deepspeed", tmp_path / "none.json",
    )  # fmt: skip
    assert found == {"--gpu", "--gpus", "--precision", "--stage", "--deepspeed"}
    assert faults() == {"--model"}
    assert faults("--model", "gpt2", "--tokens", "inf") == {"--tokens"}
    assert faults("--model", tmp_path, "--link", "string") == {"model.name", "--link"}


def test_a_deepspeed_file_that_training_refuses_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    wrong = {"zero_optimization": {"stage": "two"}, "zero": {}, "train_batch_size": 64}
    file.write_text(json.dumps(wrong), "utf-8")
    assert faults("--model", "gpt2", "--deepspeed", file) == {
        "zero (DeepSpeed JSON)", "zero_optimization.stage (DeepSpeed JSON)",
    }  # fmt: skip


@pytest.mark.parametrize("gpu, precision", [("v100-32", "fp16"), ("h100", "bf16")])
def test_precision_is_what_the_gpu_has(gpu: str, precision: str) -> None:
    assert record("--model", "gpt2", "--gpu", gpu, "--stage", 2)["request"]["precision"] == precision


def test_stage_0_is_advised_where_the_model_fits_and_the_precision_is_open() -> None:
    """The host works least there; it computes in 16 bits by autocast."""
    chosen = record("--model", "gpt2", "--gpu", "a100-40", "--global-batch", 512)
    request = chosen["request"]
    assert (request["zero_stage"], request["precision"]) == (0, "autocast")
    assert "precision" in chosen["chosen"]
    given = record("--model", "gpt2", "--gpu", "a100-40", "--global-batch", 512, "--precision", "bf16")
    assert given["request"]["zero_stage"] > 0 and "precision" not in given["chosen"]
    large = record("--model", "gpt2-xl", "--gpu", "rtx-3090", "--global-batch", 512, "--gpus", 2)
    assert large["request"]["zero_stage"] > 0
