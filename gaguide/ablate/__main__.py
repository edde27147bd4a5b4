"""`python -m gaguide.ablate`: the same program as `gaguide ablate`. It joins the ablation and its report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gaguide.ablate.command import main
from gaguide.log import print_any_text

if TYPE_CHECKING:
    from gaguide.ablate.records import AblationRecord


def show(record: AblationRecord, folder: Path) -> None:
    """Print the verdicts and write report.html into `folder`."""
    from gaguide.files import write_bytes
    from gaguide.report.ablation_report import ablation_report
    from gaguide.report.console import print_report
    from gaguide.report.outputs import render_report

    report = ablation_report([record])
    print_report(report)
    for name, content in render_report(report, "html", "report").items():
        write_bytes(folder / name, content)
    print(f"written: {folder / 'ablation.json'}, {folder / 'report.html'}", flush=True)


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Ablate and end the process; `argv` defaults to the command line."""
    print_any_text()
    sys.exit(main(argv, show))


if __name__ == "__main__":
    run()
