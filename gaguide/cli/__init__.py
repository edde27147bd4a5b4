"""The `gaguide` command. Each subcommand has a module here, which imports its package when it runs."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Annotated

import typer

from gaguide import __version__
from gaguide.errors import EXIT_USER_ERROR, UserError
from gaguide.files import disk_errors
from gaguide.log import print_any_text

_PROGRAMS = ("train", "evaluate", "ablate")
_GROUPS = ("data", "lexicon", "heads", "checkpoint", "eval", "study", "submit")
"""Modules with an `app` of subcommands."""
_COMMANDS = ("attention", "plan", "report", "push", "doctor")
"""Modules with a function of their name."""


@cache
def make_app() -> typer.Typer:
    """The command with all its subcommands."""
    app = typer.Typer(
        help="Attention-guided fine-tuning: data, training, evaluation, attention views, studies, reports.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        callback=_options,
    )
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    for name in _PROGRAMS:
        program = getattr(import_module("gaguide.cli.programs"), name)
        app.command(name, context_settings=passed_on, add_help_option=False)(program)
    for name in _GROUPS:
        app.add_typer(import_module(f"gaguide.cli.{name}").app, name=name)
    for name in _COMMANDS:
        app.command(name)(getattr(import_module(f"gaguide.cli.{name}"), name))
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
    print_any_text()
    app = make_app()
    try:
        with disk_errors():
            app()
    except UserError as error:
        print(f"gaguide: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
