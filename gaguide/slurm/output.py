"""`python -m gaguide.slurm.output ARGUMENTS`: prints the output folder of `gaguide train ARGUMENTS`.

For launch/slurm/train.sbatch where it is not rendered: the job looks there for checkpoints.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def output_of(arguments: Sequence[str]) -> Path:
    """The absolute output folder of a training with these arguments. Raises a `UserError`."""
    from gaguide.train.command import read_arguments

    return Path(read_arguments(arguments)[0].output).expanduser().absolute()


if __name__ == "__main__":
    print(output_of(sys.argv[1:]))
