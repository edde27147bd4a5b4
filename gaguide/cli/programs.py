"""`gaguide train` and `gaguide evaluate`: the programs that launchers start, as commands."""

from __future__ import annotations

import typer

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Every argument, `--help` included, is the program's own."""


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command("train", context_settings=_PASS_ON, add_help_option=False)(train)
    app.command("evaluate", context_settings=_PASS_ON, add_help_option=False)(evaluate)


def train(context: typer.Context) -> None:
    """Train a model, guided or not: one rank. For several: deepspeed --module gaguide.train …"""
    from gaguide.train.__main__ import run

    run(context.args)


def evaluate(context: typer.Context) -> None:
    """Evaluate models on tasks: one rank. For several: deepspeed --module gaguide.evaluate …"""
    from gaguide.evaluate.__main__ import run

    run(context.args)
