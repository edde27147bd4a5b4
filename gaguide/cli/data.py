"""`gaguide data build | info | verify`, and where the other commands of `data` are registered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gaguide.cli.exchange import export_command, import_command
from gaguide.cli.options import Workers, cores, takes
from gaguide.cli.overlap import overlap_command
from gaguide.cli.shards import describe_shards
from gaguide.config.arguments import shared
from gaguide.errors import EXIT_USER_ERROR

if TYPE_CHECKING:
    from gaguide.data import BuildRequest, Manifest, Progress

_EXIT_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True, help="Build, describe, verify, search, import and export folders of token shards."
)


@dataclass(frozen=True)
class BuildOptions:
    """Options of `gaguide data build`."""

    source: Annotated[
        list[str],
        typer.Option(
            help="Files, a folder, a quoted glob, an address (s3://…), a data set on the hub, or 'embedded'. "
            "May be given several times."
        ),
    ]
    output: Annotated[Path, typer.Option(help="Folder of the shards. An interrupted build is resumed.")]
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder of a tokenizer or a hub name. Optional with --source embedded only."),
    ] = None
    rows: Annotated[int | None, typer.Option(help="Use only the first N rows.")] = None
    split: Annotated[str | None, typer.Option(help="Split of a hub data set.", show_default="train")] = None
    text_field: Annotated[str, typer.Option(help="Column or field that holds the text.")] = "text"
    validation_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of documents held out, by a hash of their text.",
            show_default="0.005, or 0.05 under 100 MB",
        ),
    ] = None
    shard_tokens: Annotated[int, typer.Option(help="Approximate number of tokens in a shard.")] = 50_000_000
    workers: Workers = None
    part: Annotated[
        str | None,
        typer.Option(
            help="I/N: build the I-th of N shares, as a task of a job array. The last task to end completes "
            "the folder."
        ),
    ] = None
    bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos",
            help="Begin every document with the tokenizer's begin-of-text id.",
            show_default="as the tokenizer itself does",
        ),
    ] = None
    separator: Annotated[
        str, typer.Option(help="End of every document: 'eos', 'none', or one token of the tokenizer.")
    ] = "eos"
    max_dropped: Annotated[
        float, typer.Option(help="Fail if a larger share of the rows gives no document (0 to 1).")
    ] = 0.5
    spans: Annotated[
        list[str] | None,
        typer.Option(
            help="Field of character spans ([[start, end], …]) in the text, stored with the tokens: a "
            "pattern of guidance (spans:FIELD). May be repeated."
        ),
    ] = None
    chat: Annotated[
        str | None,
        typer.Option(
            help="Field of conversations (messages) instead of text; the loss counts the assistant's words."
        ),
    ] = None
    template: Annotated[
        Path | None, typer.Option(help="Chat template (Jinja) for --chat.", show_default="the tokenizer's")
    ] = None
    decontaminate: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks whose examples must not be in the training text, as for `gaguide evaluate`. "
            "Documents that contain a run of 13 words of one are left out. May be repeated."
        ),
    ] = None
    decontaminate_by: Annotated[
        str | None,
        typer.Option(
            help="drop: leave such documents out; mask: compute no loss on these words.", show_default="drop"
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the data files of the tasks that --decontaminate names.", show_default="the hub"
        ),
    ] = None
    revision: Annotated[
        str | None,
        typer.Option(help="Commit, branch or tag of a hub data set.", show_default="its newest commit"),
    ] = None


@app.command("build")
@takes(BuildOptions)
def build_command(options: BuildOptions) -> None:
    """Turn text into a folder of token shards."""
    from gaguide.cli.decontaminate import find_decontamination
    from gaguide.data import BuildRequest
    from gaguide.data.build.chat import read_template
    from gaguide.data.build.spread import mpi_size, parse_part
    from gaguide.errors import FaultCollector
    from gaguide.files import expand_home, output_folder

    output = output_folder(options.output, "--output")
    over_mpi = mpi_size() > 1
    share = None if options.part is None else parse_part(options.part)
    if over_mpi:
        _refuse_with_mpi(options.workers, options.part)
    with FaultCollector() as faults:
        template = None
        if options.template is not None:
            template = faults.attempt(read_template, options.template, "--template")
        decontamination = faults.attempt(
            find_decontamination, options.decontaminate, options.decontaminate_by, options.data
        )
    read = {
        "output": output,
        "tokenizer": None if options.tokenizer is None else str(expand_home(options.tokenizer)),
        "workers": (1 if over_mpi else cores()) if options.workers is None else options.workers,
        "spans": tuple(options.spans or ()),
        "template": template,
    }
    request = BuildRequest(
        sources=tuple(options.source), decontamination=decontamination, **shared(options, BuildRequest) | read
    )
    try:
        manifest = _build_over_mpi(request) if over_mpi else _build_here(request, share)
    except KeyboardInterrupt:
        typer.echo(f"interrupted: the same command resumes where this one stopped ({output})", err=True)
        raise typer.Exit(_EXIT_INTERRUPTED) from None
    if manifest is not None:
        typer.echo(describe_shards(output, manifest))
    elif share is not None:
        typer.echo(f"part {options.part} is built; the last part to end completes {output}")


def _refuse_with_mpi(workers: int | None, part: str | None) -> None:
    from gaguide.errors import Fault, UserError

    given = {"--workers": workers, "--part": part}
    remedy = "omit it: mpirun sets the number of processes"
    faults = [
        Fault(name, "does not apply under mpirun", remedy, value) for name, value in given.items() if value
    ]
    if faults:
        raise UserError(faults)


def _build_here(request: BuildRequest, share: tuple[int, int] | None) -> Manifest | None:
    from gaguide.data import build_shards
    from gaguide.data.build.spread import build_part

    with _progress_shown() as show:
        return build_shards(request, show) if share is None else build_part(request, *share, show)


def _build_over_mpi(request: BuildRequest) -> Manifest | None:
    """The manifest on rank 0; None on the ranks that encoded for it."""
    from gaguide.data import build_shards
    from gaguide.data.build.spread import encoder_in, mpi_pool

    with mpi_pool() as pool:
        if pool is None:
            return None
        with _progress_shown() as show:
            return build_shards(request, show, encoder_in(pool))


@app.command("info")
def info_command(
    folder: Annotated[str, typer.Argument(help="Folder or address of shards.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Describe the content of a folder of shards."""
    from gaguide.data.read.blocks import CACHE_BYTES
    from gaguide.data.read.folder import open_folder

    manifest = open_folder(folder, CACHE_BYTES).manifest
    if as_json:
        typer.echo(json.dumps({**asdict(manifest), "fingerprint": manifest.fingerprint}, indent=1))
    else:
        typer.echo(describe_shards(folder, manifest))


@app.command("verify")
def verify_command(folder: Annotated[str, typer.Argument(help="Folder or address of shards.")]) -> None:
    """Compare every shard with the manifest; exit code 2 if any is missing, truncated, damaged or foreign."""
    from gaguide.data.read.verify import verify

    checked, findings = 0, []
    for _, finding in verify(folder):
        checked += 1
        if finding is not None:
            findings.append(finding)
            typer.echo(f"{finding.file}: {finding.problem}", err=True)
    if findings:
        remedy = "copy them again from an intact folder, or build the shards into a new one"
        typer.echo(f"{folder}: {len(findings)} of {checked} are damaged\n    → {remedy}", err=True)
        raise typer.Exit(EXIT_USER_ERROR)
    typer.echo(f"{folder}: {checked} checked, all match the manifest")


app.command("overlap")(overlap_command)
app.command("import")(import_command)
app.command("export")(export_command)


@contextmanager
def _progress_shown() -> Iterator[Callable[[Progress], None]]:
    """A progress bar on standard error, or one line for each stage if that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None, rate="")
        first: list[Progress] = []
        stages: list[str] = []

        def show(progress: Progress) -> None:
            if not console.is_terminal:
                if progress.stage not in stages:
                    stages.append(progress.stage)
                    console.print(progress.stage)
                return
            first[:] = first or ([progress] if progress.total_bytes else [])
            rate = f"{progress.documents:,} documents, {_rate(bar.tasks[task].elapsed, first, progress)}"
            # The total is an estimate: the bar must not be full before the end.
            bar.update(
                task,
                description=progress.stage,
                total=progress.total_bytes or None,
                completed=min(progress.bytes, int(progress.total_bytes * 0.999)),
                rate=rate if progress.total_bytes else "",
            )

        yield show


def _rate(elapsed: float | None, first: list[Progress], progress: Progress) -> str:
    """Speed of this run, without what an earlier, interrupted run had encoded."""
    done = progress.bytes - (first[0].bytes if first else 0)
    return f"{done / 1e6 / max(elapsed or 0, 1e-3):,.1f} MB/s"
