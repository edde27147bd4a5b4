"""Run on every rank by test_data_fields.py: several runs in one launch. Arguments: output, runs (JSON)."""

import json
import sys
from pathlib import Path

from gaguide.config import EMBEDDED, load_config
from gaguide.distributed import World, leave, start
from gaguide.train.preflight import prepare
from gaguide.train.run import train

COMMON = {
    "train.global_batch": "4",
    "train.steps": "8",
    "train.log_every": "1",
    "validation.blocks": "4",
    "validation.every": "0",
    "checkpoint.every": "4",
}


def main(output: str, runs: str) -> None:
    world = World.from_environment()
    start(world)
    ds_json = Path(__file__).parents[2] / "ds_configs" / "zero1.json"
    for name, (config, overrides) in json.loads(runs).items():
        settings = COMMON | {"output": f"{output}/{name}"} | overrides
        train(prepare(load_config(Path(config) if config else EMBEDDED, settings), ds_json, world), world)
    leave(0)


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
