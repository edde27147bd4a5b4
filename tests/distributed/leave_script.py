"""Two ranks that meet; rank 1 ends as the first argument says, and rank 0 waits for that."""

import os
import signal
import sys
import time

from gaguide.distributed import World, barrier, leave, start

world, end = World.from_environment(), sys.argv[1]
start(world)
barrier()
if end == "together":
    leave(0)
if world.rank == 0:
    time.sleep(600)
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "raise":
    raise ValueError("on purpose")
leave(int(end))
