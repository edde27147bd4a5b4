"""A rank that does nothing but meet the others, under the watch of the evaluation."""

import time

import torch

from gaguide.distributed import World, all_reduce_sum, start
from gaguide.liveness.peers import watched

world = World.from_environment()
start(world)
with watched(world):
    for step in range(1, 1_000_000):
        all_reduce_sum(torch.ones(1))
        print(f"step {step}", flush=True)
        time.sleep(0.05)
