"""Run on every rank by test_parity.py: several short runs in one process group. Arguments: shards, output."""

import sys
from pathlib import Path

from gaguide.config import EMBEDDED, load_config
from gaguide.dist import World, start, stop
from gaguide.train.job import prepare
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
        json = Path(__file__).parents[2] / "ds_configs" / f"{stage}.json"
        train(prepare(load_config(EMBEDDED, overrides | changes), json, world), world)
    stop()


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
