"""Predicted speeds against published ones, the choice of a stage within that error, and `--measured`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gaguide.config import EMBEDDED
from gaguide.cost import GPUS, SOURCES, CostRequest, estimate, read_measured, recommend, spread
from gaguide.cost.published import RUNS, ratio
from gaguide.errors import UserError
from gaguide.files import write_text
from gaguide.model import SIZES, scratch_config, shape_of
from tests.cost.test_plan_command import record, run


@pytest.mark.parametrize("gpu", ["a100-80", "h100"])
def test_the_model_is_right_on_average_of_published_runs(gpu: str) -> None:
    found = spread(gpu)
    assert found.own_gpu and found.middle == pytest.approx(1, abs=0.05)
    assert 0.5 < found.slowest < 1 < found.fastest < 1.5
    for each in found.runs:
        assert each.source in SOURCES
        if each.source == "llm-foundry":
            assert ratio(each) == pytest.approx(1, abs=0.17), each


def test_a_gpu_without_published_runs_has_the_errors_of_all_others() -> None:
    for gpu in ("t4", "b200", "mi300x", "a10"):
        found = spread(gpu)
        assert not found.own_gpu and found.runs == RUNS and found.error >= spread("a100-80").error
    assert {each.gpu for each in RUNS} <= set(GPUS)


@pytest.mark.parametrize("size", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
@pytest.mark.parametrize("gpu", ["a100-80", "h100"])
@pytest.mark.parametrize("nodes", [1, 4])
def test_the_lowest_stage_wins_within_the_models_error(size: str, gpu: str, nodes: int) -> None:
    """ds_configs/README.md names zero1 or zero2 for these; stage 3 is faster by less than the error."""
    shape = shape_of(scratch_config(SIZES[size], 50_257, None))
    request = CostRequest(shape, gpus=8, nodes=nodes, gpu=gpu, link="ib-hdr", global_batch=512)
    best, *others = recommend(request)
    fastest = min([best, *others], key=lambda one: one.step.total)
    assert best.request.zero_stage in (0, 1, 2) and best.request.offload_optimizer == "none"
    assert best.step.total <= fastest.step.total * spread(gpu).error
    assert best.request.checkpointing <= fastest.request.checkpointing


def test_stage_3_wins_where_nothing_simpler_fits() -> None:
    shape = shape_of(scratch_config(SIZES["gpt2-xl"], 50_257, None))
    best = recommend(CostRequest(shape, gpus=8, gpu="rtx-3090", global_batch=64))[0]
    assert best.fits and best.request.offload_optimizer == "none"
    wide = replace(shape, parameters=shape.parameters * 5)
    assert recommend(CostRequest(wide, gpus=8, gpu="a100-40", global_batch=64))[0].request.zero_stage == 3


@pytest.fixture()
def finished(tmp_path: Path) -> Path:
    """The records of a run of the embedded settings on two ranks, whose speed is known."""
    write_text(tmp_path / "config.yaml", Path(EMBEDDED).read_text("utf-8"))
    write_text(
        tmp_path / "deepspeed.json",
        json.dumps({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}),
    )
    write_text(tmp_path / "summary.json", json.dumps({"world_size": 2}))
    speeds = [10.0, 1000.0, 1100.0, 900.0, 1000.0]
    lines = [json.dumps({"step": step, "tokens_per_second": speed}) for step, speed in enumerate(speeds, 1)]
    write_text(tmp_path / "metrics.jsonl", "\n".join(lines) + "\n")
    return tmp_path


def test_a_measured_run_takes_the_place_of_the_constants(finished: Path) -> None:
    words = ("--config", finished / "config.yaml", "--deepspeed", finished / "deepspeed.json", "--gpus", 2)
    words = (*words, "--gpu", "h100", "--measured", finished / "metrics.jsonl")
    answer = record(*words)
    assert answer["tokens_per_second"] == pytest.approx(1000), "the run itself: what it measured"
    low, high = answer["tokens_per_second_range"]
    assert 900 <= low < 1000 < high <= 1100
    assert answer["measured"]["steps"] == 4 and answer["measured"]["ranks"] == 2
    text = run(*words).stdout
    assert "1,000 tokens per second" in text.replace("\n", " ")
    plain = record(*words[:-2])
    assert plain["measured"] is None
    assert answer["step_seconds"]["compute"] * answer["measured"]["pace"] == pytest.approx(
        plain["step_seconds"]["compute"]
    )


def test_a_range_is_printed_with_its_source() -> None:
    text = run("--model", "gpt2", "--gpu", "h100", "--tokens", "1e9").stdout
    joined = " ".join(text.split())
    assert "11 published runs on h100" in joined and "llm-foundry" in joined and " to " in joined
    assert "none is known on b200" in " ".join(run("--model", "gpt2", "--gpu", "b200").stdout.split())


def test_what_measured_cannot_use_is_named(finished: Path) -> None:
    def problem() -> str:
        with pytest.raises(UserError) as raised:
            read_measured(finished / "metrics.jsonl", request)
        return str(raised.value)

    shape = shape_of(scratch_config(SIZES["gpt2"], 50_257, None))
    request = CostRequest(shape, gpus=2)
    (finished / "summary.json").unlink()
    assert "neither a summary.json nor a checkpoint" in problem()
    (finished / "checkpoints" / "step-00000004").mkdir(parents=True)
    write_text(finished / "checkpoints/step-00000004/manifest.json", json.dumps({"world_size": 2}))
    assert read_measured(finished, request).ranks == 2
    (finished / "deepspeed.json").unlink()
    assert "has no deepspeed.json next to it" in problem()
    write_text(finished / "metrics.jsonl", '{"step": 1, "tokens_per_second": 5}\n')
    assert "has the speed of 0 steps after the first" in problem()
    (finished / "metrics.jsonl").unlink()
    assert "does not exist" in problem()


def test_pace_scales_every_time_and_no_byte() -> None:
    shape = shape_of(scratch_config(SIZES["gpt2"], 50_257, None))
    plain = estimate(CostRequest(shape, gpus=8, nodes=2, global_batch=64))
    half = estimate(replace(plain.request, pace=0.5))
    assert half.step.total == pytest.approx(2 * plain.step.total) and half.memory == plain.memory
    assert half.step.efficiency == pytest.approx(plain.step.efficiency)
