"""Tiny random models of several architectures, in eval mode and without dropout unless asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig, PreTrainedModel, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCABULARY = 64
LAYERS, HEADS = 3, 4
_SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}

CONFIGS = {
    "gpt2": lambda dropout: GPT2Config(
        vocab_size=VOCABULARY, n_positions=96, n_embd=32, n_layer=LAYERS, n_head=HEADS,
        attn_pdrop=dropout, resid_pdrop=dropout, embd_pdrop=dropout, **_SPECIAL,
    ),
    "gpt-neox": lambda dropout: GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=64, max_position_embeddings=96, attention_dropout=dropout, **_SPECIAL,
    ),
    "opt": lambda dropout: OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        ffn_dim=64, max_position_embeddings=96, word_embed_proj_dim=32, dropout=dropout,
        attention_dropout=dropout, **_SPECIAL,
    ),
    "llama-grouped-query": lambda dropout: LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=96,
        attention_dropout=dropout, **_SPECIAL,
    ),
    "qwen2": lambda dropout: Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=96,
        attention_dropout=dropout, **_SPECIAL,
    ),
}  # fmt: skip


def sharpen(model: nn.Module, std: float) -> None:
    """Draw every matrix anew, with weights so large that attention and answers are far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)


def tiny_model(
    kind: str = "gpt2", dropout: float = 0.0, seed: int = 0, **from_config: Any
) -> PreTrainedModel:
    """A random model with weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](dropout), **from_config)
    sharpen(model, 0.25)
    return model.eval()


def sparse_model() -> PreTrainedModel:
    """DeepSeek V3.2, whose queries see four keys, by a mask that it makes if its attention is called sdpa."""
    from transformers import DeepseekV32Config

    config = DeepseekV32Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=64, moe_intermediate_size=16, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=16,
        kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, index_topk=4, index_n_heads=2,
        index_head_dim=16, max_position_embeddings=96, **_SPECIAL,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    sharpen(model, 0.25)
    return model.eval()


def random_ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Token ids [batch, length], none of them special."""
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
