"""Run on every rank by test_host.py: what the host does in each step. Arguments: TEXT, TOKENIZER, OUTPUT.

Writes OUTPUT/host.json: for each step the device's synchronisations by DeepSpeed, objects pickled for other
ranks, and numbers read from tensors.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from gaguide.config import EMBEDDED, load_config
from gaguide.distributed import World, leave, start
from gaguide.train.preflight import prepare
from gaguide.train.run import train
from gaguide.train.trainer import Trainer
from tests.support.ranks import DS_CONFIGS

counts = {"synchronised": 0, "pickled": 0, "read": 0}


class Reads(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        counts["read"] += "_local_scalar_dense" in function.name()
        return function(*args, **(kwargs or {}))


def counted(name, call):
    def count(*args, **kwargs):
        counts[name] += 1
        return call(*args, **kwargs)

    return count


def main(text: str, tokenizer: str, output: str) -> None:
    world = World.from_environment()
    start(world)
    device = get_accelerator()
    device.synchronize = counted("synchronised", device.synchronize)
    for name in ("all_gather_object", "broadcast_object_list"):
        setattr(dist, name, counted("pickled", getattr(dist, name)))
    steps = []
    step = Trainer.step

    def step_and_count(self, number):
        before = dict(counts)
        with Reads():
            step(self, number)
        steps.append({name: counts[name] - before[name] for name in counts})

    Trainer.step = step_and_count
    settings = {
        "data.shards": f"{output}/shards",
        "data.source.files": text,
        "data.source.tokenizer": tokenizer,
        "data.block_length": "32",
        "guidance.weight": "0.5",
        "train.global_batch": "8",
        "train.micro_batch": "2",
        "train.steps": "7",
        "train.log_every": "3",
        "validation.blocks": "2",
        "checkpoint.every": "0",
        "output": f"{output}/run",
    }
    train(prepare(load_config(EMBEDDED, settings), DS_CONFIGS / "zero2.json", world), world)
    if world.is_main:
        Path(output, "host.json").write_text(json.dumps(steps))
    leave(0)


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
