"""What a finished run leaves: weights that moved, or a diverged model that is not exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gaguide.config import ModelSection
from gaguide.errors import EXIT_NOT_FINITE
from gaguide.log import read_metrics
from gaguide.model import build_model, find_model
from tests.support.ranks import DS_CONFIGS, TRAIN, run_ranks

pytestmark = pytest.mark.processes


def arguments(shards: Path, output: Path, **more: str) -> list[str]:
    settings = {
        "model.name": "pico",
        "data.shards": str(shards),
        "data.block_length": "32",
        "train.global_batch": "4",
        "train.warmup_steps": "0",
        "train.log_every": "1",
        "validation.blocks": "4",
        "validation.every": "0",
        "checkpoint.every": "0",
        "output": str(output),
    } | more
    pairs = [text for field, value in settings.items() for text in (f"--{field}", value)]
    return ["--deepspeed", str(DS_CONFIGS / "zero0.json"), *pairs]


def test_a_run_of_one_step_moves_the_weights(embedded_shards: Path, tmp_path: Path) -> None:
    done = run_ranks(TRAIN, arguments(embedded_shards, tmp_path, **{"train.steps": "1"}), ranks=1)
    assert done.returncode == 0, done.stdout
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["lr"] == 1e-3
    trained = load_file(tmp_path / "model" / "model.safetensors")
    vocabulary = len(trained["transformer.wte.weight"])
    section = ModelSection(name="pico", init="scratch", dropout=0.0)
    initial = build_model(find_model(section, vocabulary, 0), 0).state_dict()
    moved = [name for name, tensor in trained.items() if not torch.equal(tensor, initial[name])]
    assert len(moved) == len(trained)


def test_a_diverged_run_is_not_exported_and_keeps_its_summary(embedded_shards: Path, tmp_path: Path) -> None:
    more = {"train.steps": "6", "train.learning_rate": "1e6", "train.max_skipped_steps": "50"}
    settings = arguments(embedded_shards, tmp_path, **more)
    summaries = []
    for ranks in (2, 1):  # the second start does no step
        done = run_ranks(TRAIN, settings, ranks=ranks)
        assert done.returncode in (EXIT_NOT_FINITE, 1), done.stdout
        assert "the run has diverged" in done.stdout and "steps were dropped" in done.stdout
        assert not (tmp_path / "model").exists()
        summaries.append(json.loads((tmp_path / "summary.json").read_text()))
    assert summaries[0] == summaries[1]
    assert summaries[0]["world_size"] == 2 and summaries[0]["dropped_steps"] >= 4
    assert "diverged" in summaries[0]["diverged"]
    assert summaries[0]["validation"]["after"]["lm_loss"] is None
