"""Tiny random models with the three kinds of tokenizers that the harness treats differently.

gpt2: GPT-2's own, without a token before a text. llama: byte-level with a beginning-of-text token before each
text. sentencepiece: words with a visible space, bytes for what it does not know, an end but no beginning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tests.support.gpt2_tokenizer import gpt2_tokenizer_folder
from tests.support.models import sharpen

KINDS = ("gpt2", "llama", "sentencepiece")

CHAT_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_TEXTS = [
    "The cat is not on the mat because it never was, but the dog often is.",
    "Question: Which of these numbers is not odd? Answer: four, six and eight are even.",
    "Nobody said that 12 times 7 is 84, although everybody could have known it.",
    "A) yes B) no C) maybe D) I don't know\n\nQ: Is it true?\nA: It is false.",
    "Die Straße führt nicht über den Fluß; 東京 is a city. <|user|> <|assistant|> <|system|>",
]


def model_folder(kind: str, target: Path, positions: int = 128) -> Path:
    """Save a random two-layer model with a tokenizer of `kind` and a chat template into `target`."""
    if kind == "gpt2":
        gpt2_tokenizer_folder(target)
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(target)
    else:
        tokenizer = llama_tokenizer() if kind == "llama" else _sentencepiece()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = positions
    tokenizer.save_pretrained(target)
    size = len(tokenizer)
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config: Any = (
        GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=positions, vocab_size=size)
        if kind == "gpt2"
        else LlamaConfig(
            vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, intermediate_size=64, max_position_embeddings=positions, **ids,
        )
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    sharpen(model, 0.15)
    model.save_pretrained(target)
    return target


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that puts a token before every text, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|begin|>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(_TEXTS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")


def _sentencepiece() -> PreTrainedTokenizerFast:
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    trained.train_from_iterator(_TEXTS * 3, trainer)
    state = json.loads(trained.to_str())["model"]
    vocabulary = {token: at for at, token in enumerate(tokens)}
    for token in state["vocab"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in state["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
