"""Evaluate a model with all ranks, e.g. `deepspeed launch/evaluate.py --model DIR --tasks demo --output OUT`.

Also runs under torchrun, mpirun and srun, and as plain python. All the work is in gaguide.evaluate.
"""

from __future__ import annotations

from gaguide.distributed import leave
from gaguide.evaluate.command import main

if __name__ == "__main__":
    leave(main())
