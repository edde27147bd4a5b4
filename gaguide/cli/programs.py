"""`gaguide train`, `gaguide evaluate` and `gaguide ablate`: programs that take their own arguments, `--help`
included."""

from __future__ import annotations

import typer


def train(context: typer.Context) -> None:
    """Train a model, guided or not: one rank. For several: deepspeed --module gaguide.train …"""
    from gaguide.train.__main__ import run

    run(context.args)


def evaluate(context: typer.Context) -> None:
    """Evaluate models on tasks: one rank. For several: deepspeed --module gaguide.evaluate …"""
    from gaguide.evaluate.__main__ import run

    run(context.args)


def ablate(context: typer.Context) -> None:
    """Remove guided heads, and controls, and measure what a model loses: are the guided heads used?"""
    from gaguide.ablate.__main__ import run

    run(context.args)
