"""`gaguide lexicon list|show`: which word sets there are, and what they match in a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

lexicons = typer.Typer(help="Word sets that heads can be guided to.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(lexicons, name="lexicon")


@lexicons.command("list")
def list_lexicons() -> None:
    """The shipped word sets with their sizes and first words."""
    from rich.console import Console
    from rich.table import Table

    from gaguide.guidance import shipped_lexicons

    table = Table("name", "words", "begins with")
    for name, lexicon in shipped_lexicons().items():
        table.add_row(name, str(len(lexicon.words)), ", ".join(lexicon.words[:6]))
    Console().print(table)


@lexicons.command()
def show(
    name: Annotated[str, typer.Argument(help="A lexicon or another pattern's name.")],
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id of the tokenizer.")],
    text: Annotated[str | None, typer.Option(help="Text in which to show the matches.")] = None,
    mode: Annotated[str, typer.Option(help="pieces or words")] = "pieces",
    file: Annotated[Path | None, typer.Option("--lexicons", help="YAML file of your own word sets.")] = None,
) -> None:
    """What a lexicon stands for in a tokenizer, and what it would match in a text."""
    from rich.console import Console

    from gaguide.data import load_tokenizer
    from gaguide.errors import Fault, UserError
    from gaguide.guidance import make_pattern, read_lexicons, shipped_lexicons
    from gaguide.guidance.show import describe, mark_matches

    if mode not in ("pieces", "words"):
        raise UserError(Fault("--mode", "no such mode", "pieces or words", mode))
    own = read_lexicons(file) if file else {}
    loaded = load_tokenizer(tokenizer)
    pattern = make_pattern(name, loaded, mode, own, "NAME")  # type: ignore[arg-type]
    console = Console()
    console.print(describe(name, pattern, (shipped_lexicons() | own).get(name), loaded), highlight=False)
    if text is not None:
        console.print(mark_matches(text, pattern, loaded))
