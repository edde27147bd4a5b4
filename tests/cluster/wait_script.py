"""A rank that only meets the others, under the watchdog of a training: OUTPUT TIMEOUT."""

import sys
import time
from pathlib import Path

import torch

from gaguide.distributed import World, all_reduce_sum, start
from gaguide.liveness.heartbeat import HeartbeatFolder
from gaguide.liveness.watchdog import Watchdog

output, timeout = Path(sys.argv[1]), float(sys.argv[2])
world = World.from_environment()
start(world)
beats = HeartbeatFolder(output / "beats")
with Watchdog(output, beats, world, timeout, lambda reason: print(reason, flush=True)) as watchdog:
    for step in range(1, 1_000_000):
        watchdog.mark(step, "adding up")
        all_reduce_sum(torch.ones(1))
        watchdog.training_has_begun()
        print(f"step {step}", flush=True)
        time.sleep(0.05)
