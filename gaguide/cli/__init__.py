"""The `gaguide` command. Each subcommand lives in its own module here and imports its package when run."""

from __future__ import annotations

import sys

import typer

from gaguide.errors import EXIT_USER_ERROR, UserError

app = typer.Typer(
    help="Attention-guided fine-tuning: data, training, evaluation, attention views, studies, reports.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point: a user's mistake prints one message and exits with code 2, without a traceback."""
    from gaguide.cli import (
        attention,
        checkpoint,
        data,
        doctor,
        eval,
        lexicon,
        plan,
        programs,
        report,
        study,
        submit,
    )

    modules = (programs, data, lexicon, attention, checkpoint, eval, plan, study, report, submit, doctor)
    for module in modules:
        module.register(app)
    try:
        app()
    except UserError as error:
        print(f"gaguide: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
