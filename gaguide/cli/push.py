"""`gaguide push`: upload the exported model of a run, with its model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gaguide.publish import Score
    from gaguide.report.run_scores import TaskScore


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(push)


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
    """Upload RUN/model to the hub, after its card (README.md) was written anew with the run's evaluations."""
    from gaguide.files import expand_home
    from gaguide.publish import push_model, write_card
    from gaguide.publish.push import check_push
    from gaguide.report.run_records import read_runs

    run = expand_home(run)
    model = check_push(run, repo, adapter)
    (record,) = read_runs([run])
    scores = [_score(each) for each in record.scores or ()]
    if not write_card(run, model, scores):
        typer.echo(f"{model / 'README.md'} was written by somebody else and stays as it is")
    files = sorted(path for path in model.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in files:
        typer.echo(f"{path.relative_to(model)}  {path.stat().st_size / 1e6:,.1f} MB")
    if dry_run:
        return
    typer.echo(f"→ {push_model(model, repo, private=private, revision=revision)}")


def _score(of: TaskScore) -> Score:
    """A row of the card; an accuracy that says nothing about the model's answers has its note."""
    from gaguide.evaluate.results.metric_names import MARK_NOTES
    from gaguide.publish import Score

    note = "" if of.doubt is None else MARK_NOTES[of.doubt]
    return Score(of.task, of.metric, of.value, of.low, of.high, of.count, note)
