"""Run on every rank by test_resize.py: runs that resume from copies of others' checkpoints, in one launch.

Arguments: shards, folder, names. A name is a precision and a stage (`fp32-2`; `+cpu`: the optimizer on the
CPU; `+parts`: many sub groups; `+untied`: a model whose output layer is not its embeddings): that run,
from start to end; or `fp32-2-on-1>fp32-3`: the continuation of the run in that folder, from its step 3.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from transformers import GPT2Config

from gaguide.config import EMBEDDED, load_config
from gaguide.distributed import World, barrier, leave, start
from gaguide.train.preflight import prepare
from gaguide.train.run import train

HALVES = {"bf16": {"bf16": {"enabled": True}}, "fp16": {"fp16": {"enabled": True}}, "fp32": {}}
EXTRAS = {
    "": {},
    "cpu": {"offload_optimizer": {"device": "cpu"}},
    "parts": {"sub_group_size": 5000},
    "untied": {},
}
UNTIED = GPT2Config(
    vocab_size=2048, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
    tie_word_embeddings=False,
)  # fmt: skip
SETTINGS = {
    "data.block_length": "32",
    "model.dropout": "0.0",
    "train.global_batch": "4",
    "train.steps": "6",
    "train.log_every": "1",
    "train.warmup_steps": "2",
    "validation.blocks": "4",
    "checkpoint.every": "3",
    "checkpoint.keep": "2",
    "checkpoint.keep_best": "1",
    "validation.every": "3",
}


def run(world: World, shards: str, output: Path, kind: str) -> None:
    """Train `kind` (`fp32-2`: precision and stage) in `output` to the end, from its newest checkpoint."""
    kind, _, extra = kind.partition("+")
    precision, stage = kind.split("-")
    settings = {"zero_optimization": {"stage": int(stage)} | EXTRAS[extra]} | HALVES[precision]
    if extra == "cpu":
        settings["zero_force_ds_cpu_optimizer"] = False  # torch's, which need not be compiled
    ds_json = output.parent / f"{output.name}-rank{world.rank}.json"
    ds_json.write_text(json.dumps(settings))
    overrides = SETTINGS | {"data.shards": shards, "output": str(output)}
    if extra == "untied":
        overrides |= {"model.name": str(output.parent / "untied"), "model.init": "scratch"}
    train(prepare(load_config(EMBEDDED, overrides), ds_json, world), world)


def main(shards: str, folder: str, names: str) -> None:
    world = World.from_environment()
    start(world)
    if world.is_main:
        UNTIED.save_pretrained(Path(folder) / "untied")
    for name in names.split(","):
        source, _, target = name.partition(">")
        output = Path(folder) / f"{name.replace('>', '-to-')}-on-{world.size}"
        if target and world.is_main:
            origin = Path(folder) / source
            shutil.copytree(origin, output, ignore=shutil.ignore_patterns("step-00000006", "*.lock"))
            shutil.rmtree(output / "model")
        barrier()
        run(world, shards, output, target or source)
    leave(0)


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
