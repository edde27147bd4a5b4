"""A small base model, and jobs that train adapters on it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedConfig

from gaguide.config import EMBEDDED, load_config
from gaguide.distributed import World
from gaguide.train.job import Job
from gaguide.train.preflight import prepare
from tests.support.ranks import DS_CONFIGS

LORA = {
    "model.init": "pretrained",
    "train.lora.rank": "4",
    "train.lora.alpha": "12",
    "train.learning_rate": "1e-2",
    "train.warmup_steps": "0",
    "checkpoint.every": "2",
    "checkpoint.keep": "9",
}


def make_base(shards: Path, folder: Path, config: PreTrainedConfig | None = None) -> Path:
    """A pretrained model, of GPT-2's architecture unless `config` says more, with the shards' tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    if config is None:
        config = GPT2Config(
            vocab_size=2048, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter_job(base: Path, shards: Path, output: Path, **more: str) -> Job:
    """The job of a run at ZeRO stage 2 on one rank."""
    settings = LORA | {
        "data.shards": str(shards),
        "data.block_length": "32",
        "model.name": str(base),
        "output": str(output),
    }
    return prepare(load_config(EMBEDDED, settings | more), DS_CONFIGS / "zero2.json", World())
