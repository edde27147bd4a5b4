"""The command `gaguide data`: exit codes, messages, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from gaguide.cli import data
from gaguide.errors import UserError


def call(*arguments: object) -> tuple[int, str]:
    """Run the command; return its exit code and output."""
    result = CliRunner().invoke(data.app, [*map(str, arguments)])
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


def test_whole_numbers_are_read_as_in_settings(jsonl, tokenizer_folder, tmp_path):
    common = ("--source", jsonl, "--tokenizer", tokenizer_folder, "--workers", 1, "--shard-tokens", "8e3")
    code, output = call("build", *common, "--output", tmp_path / "a", "--rows", "2e1")
    assert code == 0 and "20 documents" in output
    code, output = call("build", *common, "--output", tmp_path / "b", "--rows", "many")
    assert code == 2 and "whole number" in output


@pytest.mark.processes
def test_verify_imports_neither_torch_nor_transformers(shards):
    program = (
        "import sys; from gaguide.cli import main; sys.argv[1:] = ['data', 'verify', sys.argv[1]]\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(shards)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "all match the manifest" in done.stdout


def test_verify_says_how_far_it_is(shards, monkeypatch, capsys):
    from gaguide.data.read import verify
    from gaguide.log import console

    said = threading.Event()
    monkeypatch.setattr(console, "_PATIENCE", 0.001)
    monkeypatch.setattr(console, "say", lambda text: (print(text), said.set()))
    hash_file = verify.hash_file
    monkeypatch.setattr(verify, "hash_file", lambda path: said.wait(60) and hash_file(path))
    assert all(finding is None for _, finding in verify.verify(shards))
    assert "comparing files with the manifest" in capsys.readouterr().out
