"""`gaguide lexicon list|show|import`: the shipped lexicons, a pattern's matches in a text, DiMLex files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Sets of words that heads can be guided to.", no_args_is_help=True)


@app.command("list")
def list_lexicons() -> None:
    """List the shipped lexicons with their sizes and first words."""
    from rich.console import Console
    from rich.table import Table

    from gaguide.guidance import shipped_lexicons

    table = Table("name", "words", "begins with")
    for name, lexicon in shipped_lexicons().items():
        entries = (*lexicon.words, *lexicon.affixes)
        table.add_row(name, str(len(entries)), ", ".join(entries[:6]))
    Console().print(table)


@app.command("import")
def import_connectives(
    file: Annotated[Path, typer.Argument(help="DiMLex XML: a lexicon of discourse connectives.")],
    output: Annotated[Path, typer.Option(help="YAML file of lexicons to write.")],
    level: Annotated[
        int, typer.Option(min=1, max=3, help="Levels of a sense that name a lexicon: 1 gives comparison, …")
    ] = 1,
) -> None:
    """Turn a DiMLex connective lexicon into lexicons by sense, for --lexicons and guidance.lexicons."""
    from gaguide.errors import UserError
    from gaguide.files import local_folder, write_text
    from gaguide.guidance.dimlex import read_dimlex, to_yaml

    if output.exists():
        raise UserError.of("--output", "already exists", "choose another name", str(output))
    found = read_dimlex(file, level)
    local_folder(output.parent, "--output").mkdir(parents=True, exist_ok=True)
    write_text(output, to_yaml(found, file.name))
    for name, words in found.lexicons.items():
        typer.echo(f"{name}: {len(words)} connectives")
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"written: {output}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a lexicon or another pattern.")],
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id of the tokenizer.")],
    text: Annotated[str | None, typer.Option(help="A text to show the matches in.")] = None,
    mode: Annotated[str, typer.Option(help="How a lexicon matches: pieces or words.")] = "pieces",
    file: Annotated[Path | None, typer.Option("--lexicons", help="YAML file of your own lexicons.")] = None,
) -> None:
    """Show a pattern's tokens in a vocabulary, and its matches in a text."""
    from gaguide.errors import FaultCollector, not_one_of
    from gaguide.guidance import read_lexicons, shipped_lexicons
    from gaguide.guidance.registry import check_pattern_name

    with FaultCollector() as faults:  # before the tokenizer, whose library takes seconds to import
        if mode not in ("pieces", "words"):
            faults.add(not_one_of("--mode", mode, ("pieces", "words")))
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
