"""Predicted bytes on the wire against those that DeepSpeed logs on two real ranks."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from gaguide.cost import CostRequest, estimate, with_deepspeed
from gaguide.model import shape_of
from gaguide.model.freeze import frozen_parameters
from tests.cost.wire_script import MODEL
from tests.support.patience import patience
from tests.support.ranks import launch_command, rank_environment

pytestmark = pytest.mark.processes

BUCKETS = {"reduce_bucket_size": 50_000, "allgather_bucket_size": 50_000}
STAGE_3 = {
    "stage": 3, "reduce_bucket_size": 50_000, "stage3_prefetch_bucket_size": 20_000,
    "stage3_param_persistence_threshold": 0, "overlap_comm": True,
}  # fmt: skip
BF16 = {"bf16": {"enabled": True}}
CASES: dict[str, dict[str, Any]] = {
    "stage 0": {"json": {"zero_optimization": {"stage": 0}}, "accumulation": 2},
    "stage 1": {"json": BF16 | {"zero_optimization": {"stage": 1} | BUCKETS}, "accumulation": 1},
    "stage 2": {"json": BF16 | {"zero_optimization": {"stage": 2} | BUCKETS}, "accumulation": 1},
    "stage 2, accumulating": {"json": {"zero_optimization": {"stage": 2} | BUCKETS}, "accumulation": 2},
    "stage 3": {"json": BF16 | {"zero_optimization": STAGE_3}, "accumulation": 1},
    "stage 3, accumulating": {"json": BF16 | {"zero_optimization": STAGE_3}, "accumulation": 2},
    "stage 3, nothing kept": {
        "json": BF16
        | {"zero_optimization": STAGE_3 | {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}},
        "accumulation": 1,
    },
    "stage 2, frozen": {
        "json": BF16 | {"zero_optimization": {"stage": 2} | BUCKETS},
        "accumulation": 1,
        "freeze": ["embeddings", "layers 0"],
    },
    "stage 3, frozen": {
        "json": BF16 | {"zero_optimization": STAGE_3},
        "accumulation": 1,
        "freeze": ["embeddings", "layers 0"],
    },
}


def test_predicted_bytes_are_those_that_deepspeed_logs(tmp_path: Path) -> None:
    """Within 5% for every operation of every case; the logger counts a rank's share of an all-gather."""
    (tmp_path / "cases.json").write_text(json.dumps(CASES), "utf-8")
    files = [str(tmp_path / "cases.json"), str(tmp_path / "out.json")]
    command = launch_command(Path(__file__).parent / "wire_script.py", files, 2, "torchrun")  # starts sooner
    done = subprocess.run(
        command, env=rank_environment(), capture_output=True, text=True, timeout=patience(300)
    )
    assert done.returncode == 0, done.stderr
    logged = json.loads((tmp_path / "out.json").read_text("utf-8"))
    wrong = {}
    for name, case in CASES.items():
        planned, counted = planned_payload(case), logged_payload(logged[name])
        if planned != pytest.approx(counted, rel=0.05):
            wrong[name] = (planned, counted)
    assert not wrong, wrong


def planned_payload(case: dict[str, Any]) -> dict[str, int]:
    request = CostRequest(
        shape_of(GPT2Config(**MODEL)), gpus=2, block_length=16, global_batch=2 * case["accumulation"],
        micro_batch=1,
    )  # fmt: skip
    if "freeze" in case:
        model = GPT2LMHeadModel(GPT2Config(**MODEL))
        frozen = frozen_parameters(model, case["freeze"])
        trained = sum(each.numel() for name, each in model.named_parameters() if name not in frozen)
        request = replace(request, trained=trained)
    plan = estimate(with_deepspeed(request, case["json"]))
    return {one.operation: one.payload for one in plan.wire}


def logged_payload(counted: dict[str, list[list[int]]]) -> dict[str, int]:
    total = {}
    for name, sizes in counted.items():
        ranks = 2 if name.startswith("all_gather") else 1
        # Norms and flags are a few bytes each; stage 3 broadcasts its trace of modules in the first steps.
        payload = ranks * sum(size * calls for size, calls in sizes if size > 64)
        if payload and name != "broadcast":
            total[name.removesuffix("_into_tensor").removesuffix("_tensor")] = payload
    return total
