"""The key by which models that encode alike share their encoded texts."""

from __future__ import annotations

import json
from typing import Any

from gaguide.files import hash_json


def encoding_key(tokenizer: Any) -> str:
    """A key that two tokenizers share only if they encode every text alike, special tokens included.

    It covers all of a tokenizer of `tokenizers`: vocabulary, rules, flags of added tokens,
    post-processor (which puts a beginning-of-text token before a text), special tokens, templates.
    Tokenizers of other kinds never share a key.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return f"{type(tokenizer).__name__} {id(tokenizer)}"
    parts = json.loads(backend.to_str())
    for of_the_last_call in ("truncation", "padding"):
        del parts[of_the_last_call]
    parts["tokenizer"] = {
        "class": type(tokenizer).__name__,
        "special": tokenizer.special_tokens_map,
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "split_special_tokens": tokenizer.split_special_tokens,
        "add_prefix_space": getattr(tokenizer, "add_prefix_space", None),
        "chat_template": tokenizer.chat_template,
    }
    return hash_json(parts, default=str)
