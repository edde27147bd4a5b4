"""`gaguide lexicon list|show`: the shipped lexicons, and what a pattern matches in a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

lexicons = typer.Typer(help="Sets of words that heads can be guided to.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(lexicons, name="lexicon")


@lexicons.command("list")
def list_lexicons() -> None:
    """List the shipped lexicons with their sizes and first words."""
    from rich.console import Console
    from rich.table import Table

    from gaguide.guidance import shipped_lexicons

    table = Table("name", "words", "begins with")
    for name, lexicon in shipped_lexicons().items():
        table.add_row(name, str(len(lexicon.words)), ", ".join(lexicon.words[:6]))
    Console().print(table)


@lexicons.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a lexicon or another pattern.")],
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id of the tokenizer.")],
    text: Annotated[str | None, typer.Option(help="A text to show the matches in.")] = None,
    mode: Annotated[str, typer.Option(help="How a lexicon matches: pieces or words.")] = "pieces",
    file: Annotated[Path | None, typer.Option("--lexicons", help="YAML file of your own lexicons.")] = None,
) -> None:
    """Show a pattern's tokens in a vocabulary, and its matches in a text."""
    from gaguide.errors import Fault, FaultCollector
    from gaguide.guidance import read_lexicons, shipped_lexicons
    from gaguide.guidance.registry import check_pattern_name

    with FaultCollector() as faults:  # before the tokenizer, whose library takes seconds to import
        if mode not in ("pieces", "words"):
            faults.add(Fault("--mode", "must be one of pieces, words", "choose one of them", mode))
        own = faults.attempt(read_lexicons, file) if file else {}
        if own is not None:
            faults.attempt(check_pattern_name, name, own, "NAME")
    assert own is not None
    from rich.console import Console

    from gaguide.data import load_tokenizer
    from gaguide.guidance import make_pattern
    from gaguide.guidance.show import describe, mark_matches

    loaded = load_tokenizer(tokenizer)
    pattern = make_pattern(name, loaded, mode, own, "NAME")  # type: ignore[arg-type]
    console = Console()
    console.print(describe(name, pattern, (shipped_lexicons() | own).get(name), loaded), highlight=False)
    if text is not None:
        console.print(mark_matches(text, pattern, loaded))
