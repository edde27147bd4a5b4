"""`gaguide doctor`: what of this machine and environment would fail, and how to mend it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

_MARKS = {"ok": "[green]ok[/green]", "warn": "[yellow]warn[/yellow]", "fail": "[bold red]FAIL[/bold red]"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
    busy: Annotated[
        bool,
        typer.Option("--busy", help="Only count accelerators, take no memory of them: a run may need it."),
    ] = False,
) -> None:
    """Check this machine and environment; the exit code is 1 if something would fail."""
    from gaguide.doctor import diagnose

    checks = diagnose(busy=busy)
    failed = sum(check.status == "fail" for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2))
        raise typer.Exit(1 if failed else 0)

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "check", "found", show_edge=False, pad_edge=False)
    for check in checks:
        remedy = f"\n→ {check.remedy}" if check.remedy else ""
        table.add_row(_MARKS[check.status], escape(check.name), escape(check.found + remedy))
    warned = sum(check.status == "warn" for check in checks)
    console = Console()
    console.print(table)
    console.print(f"{len(checks)} checks: {failed} would fail, {warned} warnings")
    raise typer.Exit(1 if failed else 0)
