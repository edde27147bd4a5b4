"""Planning a training before it runs: memory, time, bytes on the wire, GPU-hours, settings to take."""

from gaguide.cost.assemble import assemble
from gaguide.cost.deepspeed import with_deepspeed
from gaguide.cost.estimate import Plan, estimate
from gaguide.cost.hardware import GPUS, LINKS
from gaguide.cost.recommend import recommend
from gaguide.cost.request import PlanRequest, with_run

__all__ = [
    "GPUS",
    "LINKS",
    "Plan",
    "PlanRequest",
    "assemble",
    "estimate",
    "recommend",
    "with_deepspeed",
    "with_run",
]
