"""Started on every rank by test_wire: what DeepSpeed's comms logger counts in one step, case by case.

Arguments: a JSON file of cases {name: {json, accumulation}}; the file that rank 0 writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed.comm.comm as comm
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gaguide.config import plan_batch
from gaguide.config.run import TrainSection
from gaguide.distributed import World, leave, start
from gaguide.engine.build import build_engine
from gaguide.engine.config import DevicePrecisions, RunValues, resolve_deepspeed
from gaguide.model.freeze import frozen_parameters

MODEL = {"vocab_size": 256, "n_positions": 16, "n_embd": 64, "n_layer": 3, "n_head": 2}


def one_step(case: dict[str, Any], world: World) -> dict[str, list[list[int]]]:
    """{operation: [[bytes, calls], …]} of the second step."""
    batch = plan_batch(world.size * case["accumulation"], 1, world.size)
    logger = {"comms_logger": {"enabled": True, "prof_all": True, "verbose": False, "debug": False}}
    deepspeed = resolve_deepspeed(
        case["json"] | logger, batch, RunValues(1.0, Path()), DevicePrecisions(True, True, False)
    )
    train = TrainSection(global_batch=batch.global_batch, steps=1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**MODEL)).train()
    model.loss_type = "ForCausalLM"
    frozen = frozen_parameters(model, case.get("freeze", ()))
    engine = build_engine(model, deepspeed, train, world, frozen)
    ids_BT = torch.zeros(1, 16, dtype=torch.long)
    for _ in range(2):
        comm.comms_logger.reset_data()
        for _ in range(case["accumulation"]):
            engine.backward(engine.lm_loss({"input_ids": ids_BT}))
        engine.step(train.learning_rate)
    counted = comm.comms_logger.get_raw_data()
    engine.close()
    return {name: [[size, found[0]] for size, found in sizes.items()] for name, sizes in counted.items()}


def main() -> None:
    world = World.from_environment()
    start(world)
    paths = [Path(word) for word in sys.argv[1:] if not word.startswith("--")]
    counts = {name: one_step(case, world) for name, case in json.loads(paths[0].read_text("utf-8")).items()}
    if world.is_main:
        paths[1].write_text(json.dumps(counts), "utf-8")
    leave(0)


if __name__ == "__main__":
    main()
