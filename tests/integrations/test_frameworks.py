"""Guidance under the wrappers of other frameworks: equal to one process, and every example runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from gaguide.ports import free_port
from tests.support.gpt2_tokenizer import gpt2_tokenizer_folder
from tests.support.patience import patience
from tests.support.ranks import REPOSITORY, rank_environment

pytestmark = pytest.mark.processes
EXAMPLES = REPOSITORY / "examples" / "integrations"


def run(script: Path, ranks: int, *arguments: Path) -> str:
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", str(ranks)]
    torchrun += ["--master_port", str(free_port())]
    done = subprocess.run(
        [*torchrun, str(script), *map(str, arguments)],
        env=rank_environment() | {"ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(240),
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    gpt2_tokenizer_folder(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=128)).save_pretrained(folder)
    return folder


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package} (extra: trainers)")


def test_a_step_of_two_ranks_equals_one_process_under_every_wrapper(tmp_path: Path) -> None:
    needs("lightning", "accelerate")
    run(Path(__file__).with_name("wrappers.py"), 2, tmp_path)
    differences = json.loads((tmp_path / "differences.json").read_text("utf-8"))
    assert len(differences) == 7
    assert max(differences.values()) < 1e-6, differences


@pytest.mark.parametrize(
    ("example", "ranks", "packages"),
    [
        ("trainer", 2, ["accelerate"]),
        ("sft_lora", 1, ["trl", "peft"]),
        ("fsdp2", 2, []),
        ("accelerate_loop", 2, ["accelerate"]),
        ("fabric", 2, ["lightning"]),
    ],
)
def test_the_example_runs(
    tmp_path: Path, model_folder: Path, example: str, ranks: int, packages: list[str]
) -> None:
    needs(*packages)
    output = [tmp_path / "out"] if example in {"trainer", "sft_lora"} else []
    printed = run(EXAMPLES / f"{example}.py", ranks, model_folder, *output)
    if example == "trainer":
        assert "eval_guided_attention" in printed and "guidance_loss" in printed
        assert (tmp_path / "out" / "model.safetensors").exists()
    elif example == "sft_lora":
        adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
        assert any(bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name)
        assert "guidance_loss" in printed
    else:
        assert "loss" in printed
