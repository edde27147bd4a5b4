"""deepspeed launch/train.py --deepspeed DS.json [--config RUN.yaml] [--section.field VALUE …]"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gaguide.distributed import leave
from gaguide.train.command import main

if TYPE_CHECKING:
    from gaguide.distributed import World
    from gaguide.train.evaluating import Evaluation
    from gaguide.train.job import Job


def make_evaluation(job: Job, world: World) -> Evaluation | None:
    """Training does not know the evaluator: here the two meet."""
    from gaguide.evaluate import during

    return during.make_evaluation(job, world)


if __name__ == "__main__":
    leave(main(make_evaluation=make_evaluation))
