"""Who this process is among the ranks (`World`) and the few collectives that gaguide needs."""

from gaguide.dist.collectives import (
    all_gather,
    all_reduce_max,
    all_reduce_sum,
    barrier,
    broadcast,
    raise_together,
)
from gaguide.dist.world import World, out_of_memory, start, stop

__all__ = [
    "World",
    "all_gather",
    "all_reduce_max",
    "all_reduce_sum",
    "barrier",
    "broadcast",
    "out_of_memory",
    "raise_together",
    "start",
    "stop",
]
