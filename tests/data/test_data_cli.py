"""The command `gaguide data`: exit codes, messages, JSON."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from gaguide.cli import data
from gaguide.errors import UserError


def call(*arguments: object) -> tuple[int, str]:
    """Run the command; return its exit code and output."""
    app = typer.Typer()
    data.register(app)
    app.callback()(lambda: None)  # keeps `data` a subcommand
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if isinstance(result.exception, UserError):
        raise result.exception
    return result.exit_code, result.output


def test_build_info_verify(jsonl, tokenizer_folder, tmp_path):
    folder = tmp_path / "shards"
    options = ("--tokenizer", tokenizer_folder, "--output", folder, "--shard-tokens", 8000, "--workers", 1)
    code, output = call("build", "--source", jsonl, *options)
    assert code == 0 and "100 documents" in output and "tiktoken" in output and "validation" in output
    code, output = call("info", folder)
    assert code == 0 and "100 documents" in output and "docs.jsonl" in output
    code, output = call("info", folder, "--json")
    shown = json.loads(output)
    assert code == 0 and shown["documents"] == 100 and shown["splits"]["train"][0]["sha256"]
    code, output = call("verify", folder)
    assert code == 0 and "all match the manifest" in output
    (folder / "train-00001.arrow").unlink()
    code, output = call("verify", folder)
    assert code == 2 and "train-00001.arrow: missing" in output and "copy them again" in output


def test_embedded_needs_no_tokenizer(tmp_path):
    code, output = call("build", "--source", "embedded", "--output", tmp_path / "e", "--workers", 1)
    assert code == 0 and "embedded corpus" in output and "2,048 ids" in output


def test_mistakes(tmp_path, jsonl):
    with pytest.raises(UserError, match="--tokenizer: is required"):
        call("build", "--source", jsonl, "--output", tmp_path / "x")
    with pytest.raises(UserError, match="folder does not exist"):
        call("info", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        call("verify", tmp_path)
    assert call("build", "--output", tmp_path)[0] == 2
    with pytest.raises(UserError) as caught:
        call(
            "build",
            "--source",
            tmp_path / "a.jsonl",
            "--tokenizer",
            tmp_path / "t",
            "--output",
            tmp_path / "o",
        )
    assert {fault.field for fault in caught.value.faults} == {"--source", "tokenizer"}


def test_a_folder_of_shards_is_not_a_checkpoint(shards):
    from gaguide.checkpoint.folder import describe_checkpoints

    with pytest.raises(UserError, match=r"is not a checkpoint.*gaguide-shards.*\n.*gaguide data info"):
        describe_checkpoints(shards)


def test_the_command_shows_what_was_left_out_and_how_documents_begin(jsonl, tokenizer_folder, tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(jsonl.read_bytes())
    (folder / "README.md").write_text("about")
    options = ("--tokenizer", tokenizer_folder, "--output", tmp_path / "o", "--workers", 1)
    code, output = call("build", "--source", folder, *options, "--bos", "--separator", "none")
    assert code == 0 and "1 of unknown kind (.md)" in output
    assert "begin with id 2047, end with nothing" in output
