"""Cost of a training before it runs: memory, bytes on the wire, time, GPU-hours; settings that fit."""

from gaguide.cost.assemble import assemble_request
from gaguide.cost.deepspeed import with_deepspeed
from gaguide.cost.estimate import CostEstimate, estimate
from gaguide.cost.hardware import GPUS, LINKS
from gaguide.cost.measured import Measured, read_measured
from gaguide.cost.published import SOURCES, Spread, spread
from gaguide.cost.recommend import recommend
from gaguide.cost.request import CostRequest, with_run

__all__ = [
    "GPUS",
    "LINKS",
    "SOURCES",
    "CostEstimate",
    "CostRequest",
    "Measured",
    "Spread",
    "assemble_request",
    "estimate",
    "read_measured",
    "recommend",
    "spread",
    "with_deepspeed",
    "with_run",
]
