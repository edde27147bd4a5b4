"""Run on every rank by test_offload.py: runs under several JSONs. Arguments: shards, output, JSON=steps…"""

import json
import sys
from pathlib import Path

from transformers import GPT2Config

from gaguide.config import EMBEDDED, load_config
from gaguide.dist import World, barrier, start, stop
from gaguide.train.preflight import prepare
from gaguide.train.run import train

SETTINGS = {
    "model.dropout": "0",
    "data.block_length": "32",
    "train.global_batch": "4",
    "train.micro_batch": "1",
    "train.log_every": "1",
    "train.schedule": "constant",
    "train.learning_rate": "1e-3",
    "validation.blocks": "4",
    "guidance.experiment": "1-negation",
    "guidance.weight": "0.5",
}


def main(shards: str, output: str, *runs: str) -> None:
    world = World.from_environment()
    start(world)
    # Wide enough that DeepSpeed swaps its tensors: what is below 1 MiB it keeps in memory.
    shape = Path(output) / "shape"
    if world.is_main:
        GPT2Config(
            vocab_size=2048, n_positions=64, n_embd=512, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        ).save_pretrained(shape)
    barrier()
    for run in runs:
        name, _, steps = run.partition("=")
        ds_json = Path(__file__).parents[2] / "ds_configs" / f"{name.removesuffix('+bf16')}.json"
        if name.endswith("+bf16"):
            settings = json.loads(ds_json.read_text())
            settings["bf16"] = {"enabled": True}
            ds_json = Path(output) / f"{name}-{world.rank}.json"
            ds_json.write_text(json.dumps(settings))
        overrides = SETTINGS | {
            "data.shards": shards,
            "output": f"{output}/{name}",
            "model.name": str(shape),
            "model.init": "scratch",
            "train.steps": steps.split("/")[0],
            "checkpoint.every": steps.partition("/")[2] or "0",
        }
        train(prepare(load_config(EMBEDDED, overrides), ds_json, world), world)
    stop()


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
