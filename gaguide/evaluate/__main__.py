"""`python -m gaguide.evaluate`: one rank of an evaluation. Launchers start it once a rank.

    deepspeed --module gaguide.evaluate --model DIR --tasks demo --output OUT
    torchrun --nproc_per_node 4 -m gaguide.evaluate --model DIR --tasks demo --output OUT

`gaguide evaluate` and `launch/evaluate.py` are the same program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from gaguide.distributed import leave
from gaguide.evaluate.command import main
from gaguide.log import print_any_text


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Evaluate and end the process; `argv` defaults to the command line."""
    print_any_text()
    leave(main(argv))


if __name__ == "__main__":
    run()
