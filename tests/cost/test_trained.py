"""The cost of training a part of a model, or adapters on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
import yaml
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config
from typer.testing import CliRunner

from gaguide.cli import plan
from gaguide.config import EMBEDDED, LoraSection, RunConfig, load_config
from gaguide.cost.flops import flops_per_token
from gaguide.cost.memory import MemorySetup, estimate_memory
from gaguide.cost.trained import count_trained
from gaguide.cost.wire import collectives
from gaguide.model import ModelSource, shape_of
from gaguide.model.freeze import freeze, frozen_parameters
from gaguide.model.lora import find_adapter
from gaguide.study.dry_run import estimate_cells
from gaguide.study.file import load_study
from gaguide.study.grid import Grid, make_grid

CONFIG = GPT2Config(vocab_size=256, n_positions=128, n_embd=64, n_layer=4, n_head=4)
LORA = {"train.lora.rank": "8", "model.init": "pretrained"}


def run(**settings: str) -> RunConfig:
    return load_config(EMBEDDED, {"model.name": "gpt2", **settings})


def test_what_is_trained_is_counted() -> None:
    adapters = 8 * 4 * (64 + 192 + 64 + 64 + 64 + 256 + 256 + 64)
    assert count_trained(run(**LORA), CONFIG) == (adapters, adapters, 0)
    some = run(**LORA | {"train.lora.targets": "h.0.attn.c_attn"})
    assert count_trained(some, CONFIG) == (8 * (64 + 192), 8 * (64 + 192), 0)
    model = AutoModelForCausalLM.from_config(CONFIG)
    freeze(model, frozen_parameters(model, ["embeddings", "layers 0-1"]))
    left = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert count_trained(run(**{"train.freeze": "[embeddings, layers 0-1]"}), CONFIG) == (left, 0, 0)


@pytest.mark.parametrize("stage", range(4))
def test_states_and_messages_are_of_what_is_trained(stage: int) -> None:
    shape, adapters = shape_of(CONFIG), 20_000
    setup = MemorySetup(1, block_length=8, zero_stage=stage, ranks=4)
    whole = estimate_memory(shape, setup)
    partly = replace(setup, trained=adapters, added=adapters)
    memory = estimate_memory(shape, partly)
    share = 4 if stage else 1
    assert memory.optimizer == 8 * adapters // share and memory.optimizer < whole.optimizer
    assert memory.master_weights == 4 * adapters // share
    assert memory.weights == 2 * (shape.parameters + adapters) // (4 if stage == 3 else 1)
    assert memory.gradients < whole.gradients
    sent = {one.name: one.payload for one in collectives(shape, partly)}
    assert sent["gradients"] == 2 * adapters
    if stage == 3:  # the frozen weights are gathered as well
        assert sent["weights"] >= 2 * (shape.parameters + adapters)


@pytest.mark.parametrize("kind", ["adapters", "upper half"])
def test_operations_are_near_those_torch_counts(kind: str) -> None:
    """From above: backward ends at the lowest part that is trained, which the count leaves out of account."""
    B, T = 2, 64
    model = AutoModelForCausalLM.from_config(CONFIG, attn_implementation="eager")
    added = 0
    if kind == "adapters":
        pytest.importorskip("peft")
        found = find_adapter(model, ModelSource(run().model, CONFIG), LoraSection(rank=8))
        found.add_to(model, 0)
        added = found.parameters
    else:
        freeze(model, frozen_parameters(model, ["embeddings", "layers 0-1"]))
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    ids = torch.zeros(B, T, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    counted = flops_per_token(shape_of(CONFIG), T, causal=False, trained=trained, added=added).model
    whole = flops_per_token(shape_of(CONFIG), T, causal=False).model
    ratio = counter.get_total_flops() / (B * T * counted)
    assert (0.9 if kind == "adapters" else 0.7) < ratio <= 1 and counted < 0.95 * whole


def test_plan_counts_the_trained_part_of_a_run(tmp_path: Path) -> None:
    CONFIG.save_pretrained(tmp_path / "model")
    tree = {
        "output": "out",
        "model": {"name": str(tmp_path / "model")},
        "data": {"shards": "x", "block_length": 64},
        "train": {"global_batch": 8, "steps": 10},
    }
    app = typer.Typer()
    app.command()(plan.plan)
    found = {}
    parts = {"whole": {}, "lora": {"lora": {"rank": 4}}, "freeze": {"freeze": ["embeddings"]}}
    for name, more in parts.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree | {"train": tree["train"] | more}))
        arguments = ["--config", str(path), "--stage", "2", "--precision", "bf16", "--no-checkpointing"]
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exception is None, done.exception
        found[name] = json.loads(done.stdout)["memory"]["optimizer"]
        said = CliRunner().invoke(app, arguments).stdout
        assert ("are trained" in said) == (name != "whole")
    assert found["lora"] < found["freeze"] < found["whole"]


def test_a_study_of_adapters(tmp_path: Path) -> None:
    def grid(**changes: object) -> Grid:
        tree = {
            "name": "s", "output": str(tmp_path / "out"), "sizes": ["pico"], "experiments": ["finetuned"],
            "seeds": [0], "data": {"shards": "embedded", "block_length": 32}, "tokens": 1000,
            "pretrain": {"tokens": 2048}, "tasks": ["demo"], "train": {"global_batch": 4},
        } | changes  # fmt: skip
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(tree))
        return make_grid(load_study(file, {}))

    whole, adapted = grid(), grid(train={"global_batch": 4, "lora": {"rank": 4}})
    assert whole.cells[0].id == adapted.cells[0].id  # a base is trained whole
    assert whole.cells[1].id != adapted.cells[1].id
    assert adapted.cells[1].id != grid(train={"global_batch": 4, "lora": {"rank": 2}}).cells[1].id
    costs = [list(estimate_cells(each, "h100"))[1].estimate for each in (whole, adapted)]
    assert costs[0] is not None and costs[1] is not None
    assert costs[1].memory.optimizer < costs[0].memory.optimizer
