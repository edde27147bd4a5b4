"""`estimate`: relations that hold whatever the model's constants are, and its faults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gaguide.config import load_config
from gaguide.cost import CostRequest, estimate, recommend, spread, with_deepspeed, with_run
from gaguide.engine.config import load_deepspeed_json
from gaguide.errors import UserError
from gaguide.model import SIZES, scratch_config, shape_of
from tests.support.ranks import DS_CONFIGS, REPOSITORY

XL = shape_of(scratch_config(SIZES["gpt2-xl"], 50_257, None))
SMALL = shape_of(scratch_config(SIZES["gpt2"], 50_257, None))


def test_one_rank_sends_nothing() -> None:
    plan = estimate(CostRequest(SMALL, global_batch=8, micro_batch=8))
    assert plan.sent_bytes == 0 and plan.step.efficiency == 1


def test_a_step_sends_what_the_zero_paper_says() -> None:
    """2 P elements at stages 0 to 2; 3 P at stage 3 without what stage 3 may keep gathered."""
    base = CostRequest(XL, gpus=8, nodes=2, global_batch=16)
    least = 15 / 16 * XL.parameters * 2
    assert estimate(replace(base, zero_stage=0, precision="fp32")).sent_bytes == pytest.approx(2 * 2 * least)
    for stage in (1, 2):  # DeepSpeed all-reduces the gradients and also gathers the weights
        assert estimate(replace(base, zero_stage=stage)).sent_bytes == pytest.approx(3 * least)
    kept_nothing = replace(base, zero_stage=3, kept_parameters=0)
    tied = 15 / 16 * 2 * 2 * XL.head_matrix  # gathered again for the output layer
    assert estimate(kept_nothing).sent_bytes == pytest.approx(3 * least + tied)
    kept_all = replace(base, zero_stage=3, kept_parameters=10**10)
    assert estimate(kept_all).sent_bytes == pytest.approx(2 * least)


def test_accumulation_sends_gradients_each_time_at_stage_2() -> None:
    once = estimate(CostRequest(SMALL, gpus=2, global_batch=8, micro_batch=4)).wire
    twice = estimate(CostRequest(SMALL, gpus=2, global_batch=8, micro_batch=2)).wire
    assert [one.payload for one in twice] == [2 * once[0].payload, once[1].payload]


def test_a_slower_network_costs_time_between_nodes_only() -> None:
    apart = CostRequest(XL, gpus=8, nodes=4, global_batch=32)
    slow, fast = (estimate(replace(apart, link=link)) for link in ("10gbe", "ib-ndr"))
    assert slow.step.total > fast.step.total and slow.memory == fast.memory
    together = replace(apart, gpus=32, nodes=1)
    assert estimate(replace(together, link="10gbe")).step == estimate(replace(together, link="ib-ndr")).step


def test_a_budget_gives_gpu_hours() -> None:
    plan = estimate(CostRequest(SMALL, gpus=8, nodes=2, global_batch=64, tokens=10**9))
    assert plan.steps == -(-(10**9) // (64 * 1024))
    assert plan.gpu_hours == pytest.approx(plan.steps * plan.step.total / 3600 * 16)
    assert json.loads(json.dumps(plan.as_record()))["gpu_hours"] == plan.gpu_hours


def test_all_faults_are_raised_at_once() -> None:
    request = CostRequest(
        SMALL, gpus=0, gpu="a100", link="carrier-pigeon", block_length=4096, zero_stage=2, guided_heads=13,
        offload_parameters="cpu", micro_batch=0,
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        estimate(request)
    fields = {fault.field for fault in error.value.faults}
    assert fields == {
        "--gpus", "--gpu", "--link", "--block-length", "--guided-heads", "--offload-parameters",
        "--micro-batch",
    }  # fmt: skip
    assert "a100-40" in str(error.value) or "a100-80" in str(error.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"gpu": "v100-32"}, "does not compute in bf16"),
        ({"zero_stage": 0}, "stage 0 keeps no fp32 weights"),
        ({"zero_stage": 1, "micro_batch": 1}, "would accumulate micro batches"),
        ({"global_batch": 9}, "must be divisible"),
        ({"precision": "fp32", "zero_stage": 0, "offload_optimizer": "cpu"}, "needs ZeRO"),
    ],
)
def test_what_training_refuses_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        estimate(replace(CostRequest(SMALL, gpus=2, global_batch=8), **changes))  # type: ignore[arg-type]


def test_recommended_is_among_the_fastest_that_fit_and_keeps_what_is_fixed() -> None:
    plans = recommend(CostRequest(XL, gpus=8, gpu="a100-40", global_batch=64))
    assert all(plan.fits for plan in plans)
    assert plans[0].step.total <= min(plan.step.total for plan in plans) * spread("a100-40").error
    times = [plan.step.total for plan in plans[1:]]
    assert times == pytest.approx(sorted(times), rel=0.01)
    fixed = recommend(CostRequest(XL, gpus=8, gpu="a100-80", global_batch=64, zero_stage=1), {"micro_batch"})
    assert {plan.request.zero_stage for plan in fixed} == {1}


def test_if_nothing_fits_the_smallest_configuration_is_named() -> None:
    with pytest.raises(UserError, match=r"nothing fits: the smallest .* needs \d+\.\d GiB per GPU"):
        recommend(CostRequest(XL, gpu="v100-16", precision="fp32", zero_stage=0, global_batch=1), ())


def test_more_ranks_need_less_memory_each() -> None:
    needed = [
        estimate(CostRequest(XL, gpus=8, nodes=nodes, global_batch=128, micro_batch=1, zero_stage=3)).needed
        for nodes in (1, 2, 4, 16)
    ]
    assert needed == sorted(needed, reverse=True) and needed[0] > needed[-1]


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_our_deepspeed_files_are_read(path: Path) -> None:
    config = load_deepspeed_json(path)
    zero = config["zero_optimization"]
    request = with_deepspeed(CostRequest(SMALL, gpus=2, global_batch=8), config)
    assert request.zero_stage == zero["stage"]
    if "reduce_bucket_size" in zero:
        assert request.bucket == zero["reduce_bucket_size"]
    assert estimate(request).memory.peak > 0
    offloads = zero.get("offload_optimizer", {}).get("device", "none")
    assert request.offload_optimizer == offloads
    assert request.precision == ("autocast" if "torch_autocast" in config else expected_precision(path))


def expected_precision(path: Path) -> str:
    return "fp16" if "fp16" in path.stem else "bf16"


def test_a_run_gives_its_batch_and_guided_heads() -> None:
    run = load_config(REPOSITORY / "launch" / "recipes" / "gpt2-xl-4-transition.yaml", {})
    request = with_run(CostRequest(XL, gpus=8), run)
    assert request.guided_heads == 4 and request.global_batch == run.train.global_batch
    assert request.checkpointing == run.train.gradient_checkpointing
