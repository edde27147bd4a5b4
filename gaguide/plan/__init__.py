"""Planning a training before it runs: memory, time, bytes on the wire, GPU-hours, settings to take."""

from gaguide.plan.assemble import assemble
from gaguide.plan.deepspeed import with_deepspeed
from gaguide.plan.estimate import Plan, estimate
from gaguide.plan.hardware import GPUS, LINKS
from gaguide.plan.recommend import recommend
from gaguide.plan.request import PlanRequest, with_run

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
