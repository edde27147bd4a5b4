"""Run on every rank by test_variants.py and test_offload.py: short runs. Arguments: shards, output, SPEC.

SPEC is a JSON file: name → {"ds": a DeepSpeed JSON's object, "run": overrides of the settings below,
"copy": a run whose folder it starts with, "forget": a checkpoint to remove before}.
"""

import json
import shutil
import sys
from pathlib import Path

from transformers import GPT2Config

from gaguide.config import EMBEDDED, load_config
from gaguide.distributed import World, barrier, leave, start
from gaguide.train.preflight import prepare
from gaguide.train.run import train

SETTINGS = {
    "model.dropout": "0",
    "model.init": "scratch",
    "data.block_length": "32",
    "train.global_batch": "4",
    "train.micro_batch": "1",
    "train.steps": "4",
    "train.log_every": "1",
    "train.schedule": "constant",
    "train.learning_rate": "1e-3",
    "validation.blocks": "4",
    "checkpoint.every": "0",
    "guidance.weight": "0.5",
}


def main(shards: str, output: str, spec: str) -> None:
    world = World.from_environment()
    start(world)
    # Wide enough that DeepSpeed swaps its tensors: what is below 1 MiB it keeps in memory.
    shape = Path(output) / "shape"
    if world.is_main:
        GPT2Config(
            vocab_size=2048, n_positions=64, n_embd=512, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        ).save_pretrained(shape)
    barrier()
    for name, wanted in json.loads(Path(spec).read_text()).items():
        ds_json = Path(output) / f"{name}-{world.rank}.json"
        ds_json.write_text(json.dumps(wanted["ds"]))
        place = {"data.shards": shards, "output": f"{output}/{name}", "model.name": str(shape), "name": name}
        run = load_config(EMBEDDED, SETTINGS | place | wanted.get("run", {}))
        if "copy" in wanted and world.is_main:
            shutil.copytree(Path(output) / wanted["copy"], run.output)
        if "forget" in wanted and world.is_main:
            shutil.rmtree(Path(run.output) / "checkpoints" / wanted["forget"])
        barrier()
        train(prepare(run, ds_json, world), world)
    leave(0)


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
