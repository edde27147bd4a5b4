"""`gaguide heads profile`: the behaviour of each head of a model, and which heads to guide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gaguide.cli.options import takes
from gaguide.config.arguments import shared
from gaguide.config.data import EMBEDDED_SHARDS
from gaguide.errors import UserError, not_one_of

app = typer.Typer(help="Which heads to guide: profiles of a model's heads.", no_args_is_help=True)


@dataclass(frozen=True)
class ProfileOptions:
    """Options of `gaguide heads profile`."""

    mode: Annotated[str, typer.Option(help="How a lexicon matches: pieces or words.")] = "words"
    lexicons: Annotated[Path | None, typer.Option(help="YAML file of your own lexicons.")] = None
    text: Annotated[
        str, typer.Option(help="Shards, by folder or address: their validation split is read.")
    ] = EMBEDDED_SHARDS
    blocks: Annotated[int, typer.Option(help="Held-out blocks, spread over the split.")] = 32
    block_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a block.", show_default="the model's positions, at most 1024"),
    ] = None
    batch: Annotated[int, typer.Option(help="Blocks of a forward pass.")] = 4
    top: Annotated[
        int,
        typer.Option(help="Heads removed exactly: the largest estimates near cues and the smallest of all."),
    ] = 10
    choose: Annotated[int, typer.Option(help="Heads that each rule chooses.")] = 4
    dtype: Annotated[str, typer.Option(help="Precision of the model: fp32, bf16 or fp16.")] = "fp32"
    seed: Annotated[int, typer.Option(help="Seed of the random choice.")] = 0


@app.callback()
def _group() -> None:
    """Keep `profile` a subcommand, though it is the only one."""


@app.command()
@takes(ProfileOptions)
def profile(
    options: ProfileOptions,
    model: Annotated[str, typer.Option(help="Model folder, run folder or hub id.")],
    lexicon: Annotated[str, typer.Option(help="Lexicon, or another pattern that marks tokens.")],
    output: Annotated[Path, typer.Option(help="Folder for profile.json, plan.yaml and report.html.")],
) -> None:
    """Measure every head: attention on the words, effect near them, behaviour; choose heads by rule."""
    from gaguide.files import expand_home, output_folder, write_bytes
    from gaguide.heads.records import FILE, write_profile
    from gaguide.heads.rules import write_plan

    folder = output_folder(output, "--output")
    if (folder / FILE).exists():
        raise UserError.of("--output", f"already has a {FILE}", "choose another folder", str(folder))
    if options.mode not in ("pieces", "words"):
        raise UserError(not_one_of("--mode", options.mode, ("pieces", "words")))
    from gaguide.distributed import World
    from gaguide.heads.profile import ProfileSettings
    from gaguide.heads.profile import profile as profile_heads
    from gaguide.report.console import print_report
    from gaguide.report.outputs import render_report
    from gaguide.report.profile_report import profile_report

    settings = ProfileSettings(
        pattern=lexicon,
        heads=options.choose,
        **shared(options, ProfileSettings) | {"text": str(expand_home(options.text))},
    )
    record = profile_heads(str(expand_home(model)), settings, World.from_environment().device)
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(folder, record)
    report = profile_report(record)
    for name, content in render_report(report, "html", "report").items():
        write_bytes(folder / name, content)
    write_profile(folder, record)
    print_report(report)
    typer.echo(f"written: {folder / FILE}, {folder / 'plan.yaml'}, {folder / 'report.html'}")
