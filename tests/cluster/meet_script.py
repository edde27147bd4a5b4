"""A rank that only meets the others, under the monitor of an evaluation."""

import time

import torch

from gaguide.distributed import World, all_reduce_sum, start
from gaguide.liveness.peers import watch_evaluation

world = World.from_environment()
start(world)
with watch_evaluation(world):
    for step in range(1, 1_000_000):
        all_reduce_sum(torch.ones(1))
        print(f"step {step}", flush=True)
        time.sleep(0.05)
