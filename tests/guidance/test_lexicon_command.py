"""The command `gaguide lexicon`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gaguide.cli.lexicon import app
from gaguide.errors import UserError
from tests.support.ranks import rank_environment


def lexicon(*arguments: str) -> str:
    """Output of the command, run in this process."""
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_show_marks_matches(embedded_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("python: [name, bound]\n")
    tokenizer = str(embedded_shards / "tokenizer")
    text = "It is not so, but a [b]name[/b] is bound. Continue."
    pieces = lexicon("show", "contrast", "--tokenizer", tokenizer, "--text", text)
    assert "It is [not] so, [but] a" in pieces
    assert "not in this vocabulary" in pieces
    own = ("--mode", "words", "--lexicons", str(tmp_path / "own.yaml"))
    words = lexicon("show", "python", "--tokenizer", tokenizer, *own, "--text", text)
    assert "[b][name][/b] is [bound]. Continue." in words
    position = lexicon("show", "offset-2", "--tokenizer", tokenizer, "--text", text)
    assert "every token attends to the one 2 before it" in position


def test_list_names_every_lexicon() -> None:
    shown = lexicon("list")
    for name in ("contrast", "order", "addition", "emphasis", "conditionals", "hedges", "sentence-ends"):
        assert name in shown


def test_mistakes_are_user_errors(embedded_shards: Path) -> None:
    tokenizer = str(embedded_shards / "tokenizer")
    for arguments, message in (
        (("show", "next-token", "--tokenizer", tokenizer), "causal model"),
        (("show", "contrast", "--tokenizer", "/nowhere"), "/nowhere"),
        (("show", "contrast", "--tokenizer", tokenizer, "--mode", "letters"), "must be one of pieces, words"),
    ):
        with pytest.raises(UserError, match=message):
            lexicon(*arguments)


@pytest.mark.processes
def test_a_mistake_ends_the_command_without_a_traceback(embedded_shards: Path) -> None:
    program = Path(sys.executable).parent / "gaguide"
    arguments = ["lexicon", "show", "contrasts", "--tokenizer", str(embedded_shards / "tokenizer")]
    done = subprocess.run([str(program), *arguments], env=rank_environment(), capture_output=True, text=True)
    assert done.returncode == 2, done.stdout
    assert "did you mean 'contrast'?" in done.stderr and "Traceback" not in done.stderr
