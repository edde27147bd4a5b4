"""`gaguide doctor`: checks what would fail on this machine and in this environment, and how to fix it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gaguide.doctor import Check

_COLORS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
_NAME_WIDTH = 20


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
    busy: Annotated[
        bool,
        typer.Option(
            "--busy", help="Only count accelerators, without using their memory: a run may need it."
        ),
    ] = False,
) -> None:
    """Check this machine and environment. The exit code is 1 if anything would fail."""
    from gaguide.doctor import diagnose

    checks = []
    for check in diagnose(busy=busy):
        checks.append(check)
        if not as_json:
            _print(check)
    failed = sum(check.status == "fail" for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        warned = sum(check.status == "warn" for check in checks)
        typer.echo(f"{len(checks)} checks: {failed} would fail, {warned} warnings")
    raise typer.Exit(1 if failed else 0)


def _print(check: Check) -> None:
    """Print a check as it comes; lines are not wrapped, so that a remedy can be copied."""
    label = typer.style(f"{check.status.upper() if check.status == 'fail' else check.status:4}",
                        fg=_COLORS[check.status], bold=check.status == "fail")  # fmt: skip
    typer.echo(f"{label}  {check.name:{_NAME_WIDTH}}  {check.found}")
    if check.remedy:
        typer.echo(f"{'':{6 + _NAME_WIDTH}}  → {check.remedy}")
