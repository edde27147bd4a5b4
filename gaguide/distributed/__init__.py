"""Which rank this process is (`World`), how the ranks meet, and the few collectives that gaguide needs."""

from gaguide.distributed.collectives import (
    all_gather,
    all_reduce_sum,
    alone,
    barrier,
    broadcast,
    raise_together,
    shared_clock,
)
from gaguide.distributed.world import World, leave, out_of_memory, start, stop

__all__ = [
    "World",
    "all_gather",
    "all_reduce_sum",
    "alone",
    "barrier",
    "broadcast",
    "leave",
    "out_of_memory",
    "raise_together",
    "shared_clock",
    "start",
    "stop",
]
