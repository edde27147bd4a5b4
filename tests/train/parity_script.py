"""Run on every rank by test_parity.py: several short runs in one process group. Arguments: shards, output."""

import json
import sys
from pathlib import Path

from gaguide.config import EMBEDDED, load_config
from gaguide.distributed import World, leave, start
from gaguide.train.preflight import prepare
from gaguide.train.run import train

RUNS = {
    "zero0": ("zero0", {}),
    "zero1": ("zero1", {}),
    "zero2": ("zero2", {}),
    "zero3": ("zero3", {}),
    "accumulated": ("zero2", {"train.micro_batch": "1"}),
    "checkpointed": ("zero2", {"train.gradient_checkpointing": "true"}),
    "finetuned": ("zero2", {"guidance.experiment": "finetuned"}),
    "weight0": ("zero2", {"guidance.weight": "0"}),
    # One sequence per rank, so that often only one rank has a target.
    "unequal": ("zero3", {"train.global_batch": "2", "data.block_length": "16"}),
    "bf16-1": ("bf16-1", {}),
    "bf16-2": ("bf16-2", {}),
    "bf16-3": ("bf16-3", {}),
}
COMMON = {
    "data.block_length": "128",
    "train.global_batch": "4",
    "train.steps": "6",
    "train.warmup_steps": "2",
    "train.log_every": "1",
    "validation.blocks": "7",
    "validation.every": "3",
}


def main(shards: str, output: str, names: str, dropout: str) -> None:
    world = World.from_environment()
    start(world)
    for name in names.split(","):
        stage, changes = RUNS[name]
        overrides = COMMON | {"data.shards": shards, "output": f"{output}/{name}", "model.dropout": dropout}
        ds_json = Path(__file__).parents[2] / "ds_configs" / f"{stage}.json"
        if stage.startswith("bf16"):
            ds_json = Path(output) / f"{stage}-rank{world.rank}.json"
            settings = {"zero_optimization": {"stage": int(stage[-1])}, "bf16": {"enabled": True}}
            ds_json.write_text(json.dumps(settings))
        train(prepare(load_config(EMBEDDED, overrides | changes), ds_json, world), world)
    leave(0)


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
