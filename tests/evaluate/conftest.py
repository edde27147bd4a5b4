"""A tiny random GPT-2 with the frequent part of GPT-2's tokenizer, and real data where they are present."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.support.gpt2_tokenizer import MERGES, gpt2_tokenizer_folder
from tests.support.models import sharpen

DATA = Path(__file__).parents[3] / "shared" / "data"


def save_gpt2(folder: Path, positions: int = 128, seed: int = 0) -> Path:
    """Save a random two-layer GPT-2 into `folder`; its weights are large enough that answers differ."""
    gpt2_tokenizer_folder(folder, MERGES)
    torch.manual_seed(seed)
    end = 256 + MERGES
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, n_positions=positions,
        vocab_size=end + 1, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    sharpen(model, 0.15)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 128 positions."""
    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def other_gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint of the same shape."""
    return save_gpt2(tmp_path_factory.mktemp("gpt2"), seed=1)


@pytest.fixture(scope="session")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file: the same demonstrations before every prompt, more examples than fit into one row."""
    shots = "".join(f"Q: Is {at} not odd? A: {'no' if at % 2 else 'yes'}.\n" for at in range(5))
    rows = [
        {"prompt": f"{shots}Q: Is number {at} of {at * 7 % 64} not odd? A:", "classes": [" no", " it is."],
         "answer_index": at % 2}
        for at in range(48)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("demonstrated") / "demonstrated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def memo_trap() -> Path:
    """The prize's memo-trap file."""
    return _present(DATA / "inverse_scaling" / "memo-trap_classification.jsonl")


@pytest.fixture(scope="session")
def prize_csv() -> Path:
    """A folder of prize entries as CSV files, one of each kind of score."""
    return _present(DATA / "prize_csv")


def _present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"real data are missing: {path}")
    return path
