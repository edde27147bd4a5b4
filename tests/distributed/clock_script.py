"""A rank whose host's clock is an hour ahead, if it is not rank 0: prints the clock that ranks share."""

import time

from gaguide.distributed import World, all_gather, leave, shared_clock, start

world = World.from_environment()
start(world)
own_time = time.time
time.time = lambda: own_time() + 3600 * world.rank
clock = shared_clock()
shown = all_gather(clock())
if world.is_main:
    print(f"apart {max(shown) - min(shown):.1f} from here {abs(clock() - own_time()):.0f}", flush=True)
leave(0)
