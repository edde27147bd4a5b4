"""What an export holds besides the weights, and where output may lie."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from gaguide.checkpoint import Companions
from gaguide.cli import make_app
from gaguide.config import EMBEDDED, load_config
from gaguide.data import BuildRequest, build_shards
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.evaluate.command import main as evaluate_main
from gaguide.files import local_folder, replacing_folder
from gaguide.model.licenses import read_licenses
from gaguide.train.job import Job
from gaguide.train.preflight import prepare
from tests.support.ranks import DS_CONFIGS

GENERATION = {"eos_token_id": [2, 0], "temperature": 0.6, "max_new_tokens": 128, "future_setting": "kept"}


@pytest.fixture
def base(embedded_shards: Path, tmp_path: Path) -> Path:
    """A pretrained folder with generation settings and a chat template."""
    folder = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(embedded_shards / "tokenizer")
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=1)
    ).save_pretrained(folder)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "LICENSE").write_text("what others may do")
    (folder / "NOTICE.txt").write_text("whom to thank")
    (folder / "licensed.txt").write_text("not a licence")
    return folder


def job(base: Path, shards: Path, output: Path, **more: str) -> Job:
    settings = {
        "data.shards": str(shards),
        "model.name": str(base),
        "model.init": "pretrained",
        "data.block_length": "32",
        "output": str(output),
    }
    return prepare(load_config(EMBEDDED, settings | more), DS_CONFIGS / "zero2.json", World())


@pytest.mark.processes
def test_a_kill_while_a_folder_is_replaced_loses_neither(tmp_path: Path) -> None:
    """In the middle of removing the old one, the new one is in its place."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    program = """
import os, shutil, signal, sys
from pathlib import Path
from gaguide.files import replacing_folder

def killed(path, *more, **named):
    for file in path.glob("*"):
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

shutil.rmtree = killed
with replacing_folder(Path(sys.argv[1])) as new:
    new.mkdir()
    (new / "weights").write_text("new")
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "model")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "model" / "weights").read_text() == "new"
    with replacing_folder(tmp_path / "model") as again:
        again.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_keeps_generation_settings_chat_template_and_licence(
    base: Path, embedded_shards: Path, tmp_path: Path
) -> None:
    companions = job(base, embedded_shards, tmp_path / "out").companions
    assert companions.generation == GENERATION
    folder = tmp_path / "written"
    folder.mkdir()
    companions.write(folder)
    assert json.loads((folder / "generation_config.json").read_text()) == GENERATION
    assert read_licenses(folder) == {"LICENSE": b"what others may do", "NOTICE.txt": b"whom to thank"}
    assert not (folder / "licensed.txt").exists()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer.model_max_length == 64


def test_added_tokens_need_the_word(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<tool>", "<call>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text").mkdir()
    for at in range(40):
        (tmp_path / "text" / f"{at}.txt").write_text(f"document {at} is not short but long " * 40)
    build_shards(
        BuildRequest(
            sources=(str(tmp_path / "text"),),
            output=tmp_path / "shards",
            tokenizer=str(tmp_path / "tokenizer"),
            validation_fraction=0.3,
            workers=1,
        )
    )
    with pytest.raises(UserError, match=r"model\.resize_embeddings: true"):
        job(base, tmp_path / "shards", tmp_path / "out")
    found = job(base, tmp_path / "shards", tmp_path / "out", **{"model.resize_embeddings": "true"})
    assert found.model.config.vocab_size == len(tokenizer)


def test_a_model_from_random_weights_has_no_generation_settings(
    embedded_shards: Path, tmp_path: Path
) -> None:
    more = {"model.name": "pico", "model.init": "scratch"}
    companions = job(tmp_path, embedded_shards, tmp_path / "out", **more).companions
    assert isinstance(companions, Companions) and companions.generation is None


@pytest.mark.parametrize("address", ["s3://bucket/x", "gs://bucket/x", "file:///x", "hf://datasets/x"])
def test_output_is_no_address(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = load_config(EMBEDDED, {"output": address})
    with pytest.raises(UserError, match=r"output = .*is an address"):
        prepare(run, DS_CONFIGS / "zero2.json", World())
    assert evaluate_main(["--model", "x", "--tasks", "demo", "--output", address]) == 2
    for command in (
        ["data", "build", "--source", "embedded", "--output", address],
        ["report", ".", "--output", address + ".html"],
        ["study", "run", "laptop", "--output", address, "--dry-run"],
    ):
        done = CliRunner().invoke(make_app(), command)
        assert isinstance(done.exception, UserError) and "is an address" in str(done.exception), done
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home_folder_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = {
        "output": "~/out",
        "model.name": "~/base",
        "data.source.files": "[~/text, other]",
        "data.source.tokenizer": "~/tokenizer",
        "data.shards": "~/shards",
        "evaluate.data": "~/tasks",
    }
    run = load_config(EMBEDDED, settings)
    assert run.data.source is not None
    found = [run.output, run.model.name, run.data.shards, run.data.source.tokenizer, run.evaluate.data]
    assert found == [str(tmp_path / name) for name in ("out", "base", "shards", "tokenizer", "tasks")]
    assert run.data.source.files == (str(tmp_path / "text"), "other")
    assert local_folder("~/x", "output") == tmp_path / "x"
