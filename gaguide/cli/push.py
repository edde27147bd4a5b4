"""`gaguide push`: upload the exported model of a run, with its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    run: Annotated[Path, typer.Argument(help="Output folder of a finished training.")],
    repo: Annotated[str, typer.Option(help="Repository: USER/NAME or ORGANISATION/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to upload to.")] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Of a run with train.lora: RUN/adapter in place of RUN/model.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the card and list the files only.")
    ] = False,
) -> None:
    """Upload RUN/model to the hub, with a new card (README.md) that has the run's evaluations."""
    from gaguide.files import expand_home
    from gaguide.publish import push_model, write_card
    from gaguide.publish.model_crate import write_model_crate
    from gaguide.publish.push import check_push
    from gaguide.report.run_records import read_runs

    run = expand_home(run)
    model = check_push(run, repo, adapter, dry_run)
    (record,) = read_runs([run])
    if not write_card(run, model, record.scores or ()):
        typer.echo(f"{model / 'README.md'} was not written by gaguide and stays as it is")
    write_model_crate(run, model)
    files = sorted(path for path in model.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in files:
        typer.echo(f"{path.relative_to(model)}  {path.stat().st_size / 1e6:,.1f} MB")
    if dry_run:
        return
    typer.echo(f"→ {push_model(model, repo, private=private, revision=revision)}")
