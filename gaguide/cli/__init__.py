"""The `gaguide` command. Each subcommand has a module here, which imports its package when it runs."""

from __future__ import annotations

import sys
from functools import cache
from typing import Annotated

import typer

from gaguide import __version__
from gaguide.errors import EXIT_USER_ERROR, UserError


@cache
def make_app() -> typer.Typer:
    """The command with all its subcommands."""
    from gaguide.cli import (
        attention,
        checkpoint,
        data,
        doctor,
        eval,
        heads,
        lexicon,
        plan,
        programs,
        push,
        report,
        study,
        submit,
    )

    app = typer.Typer(
        help="Attention-guided fine-tuning: data, training, evaluation, attention views, studies, reports.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        callback=_options,
    )
    modules = (
        programs,
        data,
        lexicon,
        heads,
        attention,
        checkpoint,
        eval,
        plan,
        study,
        report,
        push,
        submit,
        doctor,
    )
    for module in modules:
        module.register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"gaguide {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Options before a subcommand."""


def main() -> None:
    """Run the command line. A `UserError` is printed without a traceback and exits with `EXIT_USER_ERROR`."""
    app = make_app()
    try:
        app()
    except UserError as error:
        print(f"gaguide: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
