"""`python -m gaguide.train`: one rank of a training. Launchers start it once a rank.

    deepspeed --module gaguide.train --deepspeed zero2 --config gpt2-4-transition
    torchrun --nproc_per_node 4 -m gaguide.train --deepspeed zero2
    srun python -m gaguide.train --deepspeed zero2

`gaguide train` and `launch/train.py` are the same program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from gaguide.distributed import leave
from gaguide.log import print_any_text
from gaguide.train.command import main

if TYPE_CHECKING:
    from gaguide.distributed import World
    from gaguide.train.evaluating import Evaluation
    from gaguide.train.job import Job


def make_evaluation(job: Job, world: World) -> Evaluation | None:
    """A run's evaluation during training; None where it has none.

    `gaguide.train` does not depend on the evaluator: this program joins the two.
    """
    from gaguide.evaluate import during

    return during.make_evaluation(job, world)


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Train and end the process; `argv` defaults to the command line."""
    print_any_text()
    leave(main(argv, make_evaluation))


if __name__ == "__main__":
    run()
