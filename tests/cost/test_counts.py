"""Counted parameters, operations and saved activations against real models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from gaguide.cost import memory as memory_module
from gaguide.cost.flops import flops_per_token
from gaguide.cost.memory import (
    MemorySetup,
    Precision,
    activation_bytes_per_layer,
    estimate_memory,
    guidance_saves,
)
from gaguide.errors import UserError
from gaguide.guidance import Assignment, GuidancePlan, TokenSet, backend, guide, guided_pass
from gaguide.model import fuse_activations, gpt2_shape, scratch_config, shape_of
from gaguide.model.sizes import SIZES

_IDS = {"bos_token_id": 0, "eos_token_id": 0}


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_gpt2_sizes_have_their_known_parameters(name: str, parameters: int) -> None:
    config = scratch_config(SIZES[name], 50_257, 50_256)
    assert shape_of(config).parameters == parameters == skeleton_parameters(config)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(num_hidden_layers=3, num_key_value_heads=8),
        LlamaConfig(num_hidden_layers=2, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
        GPTNeoXConfig(num_hidden_layers=2, hidden_size=512, intermediate_size=2048, num_attention_heads=8),
        Qwen2Config(num_hidden_layers=2, num_key_value_heads=4),
    ],
    ids=lambda config: config.model_type,
)
def test_other_families_are_counted_exactly(config: PretrainedConfig) -> None:
    assert shape_of(config).parameters == skeleton_parameters(config)


def test_unknown_families_are_counted_on_a_skeleton() -> None:
    from transformers import OPTConfig

    config = OPTConfig(num_hidden_layers=2)
    assert shape_of(config).parameters == skeleton_parameters(config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Gemma3TextConfig, Phi3Config, FalconConfig])
def test_other_blocks_are_measured_on_a_skeleton(kind: type[PretrainedConfig]) -> None:
    """Gated by GELU with more norms; fused matrices; one key head, which the configuration does not name."""
    more = {} if kind is FalconConfig else {"pad_token_id": 0, "intermediate_size": 192}
    if kind is Gemma3TextConfig:
        more |= {"num_key_value_heads": 1, "head_dim": 32}

    def config(layers: int) -> PretrainedConfig:
        return kind(
            vocab_size=256, hidden_size=64, num_hidden_layers=layers, num_attention_heads=4, **more, **_IDS
        )

    shape, T = shape_of(config(6)), 64
    model = AutoModelForCausalLM.from_config(config(6), attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(2, T, dtype=torch.long), use_cache=False)
    counted = 2 * T * flops_per_token(shape, T, causal=False).forward
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-3)
    for precision in ("fp32", "bf16"):
        setup = MemorySetup(2, block_length=128, precision=precision)  # type: ignore[arg-type]
        saved = [saved_bytes(config(layers), setup) for layers in (1, 2)]
        # Falcon's mask of T x T is not a block's own.
        rel = 0.1 if kind is FalconConfig else 0.005
        assert activation_bytes_per_layer(shape, setup) == pytest.approx(saved[1] - saved[0], rel=rel)


def test_a_model_that_cannot_be_measured_is_computed() -> None:
    """BLOOM does not run on SDPA."""
    shape = shape_of(BloomConfig(vocab_size=256, hidden_size=64, n_layer=2, n_head=4, **_IDS))
    assert shape.saved is None and shape.matrices == 2 * 12 * 64**2


def test_mixtures_of_experts_are_refused() -> None:
    from transformers import MixtralConfig

    with pytest.raises(UserError, match="mixture of experts"):
        shape_of(MixtralConfig())


def test_operations_are_those_torch_counts() -> None:
    """torch counts every product with the whole square of scores, so causal is off here."""
    config = small(GPT2Config)
    B, T = 2, 64
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(B, T, dtype=torch.long), use_cache=False)
    counted = flops_per_token(shape_of(config), T, causal=False)
    assert counter.get_total_flops() == B * T * counted.forward


def test_training_is_three_forward_passes_and_checkpointing_one_more_of_the_blocks() -> None:
    shape = shape_of(scratch_config(SIZES["gpt2"], 50_257, None))
    plain = flops_per_token(shape, 1024)
    again = flops_per_token(shape, 1024, checkpointing=True)
    assert plain.training == 3 * plain.forward
    assert again.training - plain.training == plain.forward - plain.logits
    guided = flops_per_token(shape, 1024, guided_heads=48)
    assert 1 < guided.training / plain.training < 1.01


GPT2, LLAMA, NEOX = GPT2Config, LlamaConfig, GPTNeoXConfig
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.float32}


def small(kind: Callable[..., PretrainedConfig], layers: int = 2, dropout: float = 0.0) -> PretrainedConfig:
    """A model of width 64; llama shares keys among pairs of heads."""
    if kind is GPT2Config:
        drops = {"attn_pdrop": dropout, "resid_pdrop": dropout, "embd_pdrop": dropout}
        return GPT2Config(
            vocab_size=256, n_positions=128, n_embd=64, n_layer=layers, n_head=4, **drops, **_IDS
        )
    extra = {"num_key_value_heads": 2} if kind is LlamaConfig else {}
    return kind(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=128,
        **extra,
        **_IDS,
    )


@pytest.mark.parametrize(
    "kind, dropout, precision",
    [
        *product([GPT2], [0.0, 0.1], ["fp32", "bf16"]),
        *product([LLAMA, NEOX], [0.0], ["fp32", "bf16"]),
        *product([GPT2, LLAMA], [0.0], ["autocast"]),
    ],
)
def test_a_layer_saves_the_bytes_that_are_counted(
    kind: Callable[..., PretrainedConfig], dropout: float, precision: Precision
) -> None:
    """Two layers' saved tensors less one layer's."""
    setup = MemorySetup(2, block_length=128, precision=precision, fused_attention=dropout == 0)
    saved = [saved_bytes(small(kind, layers, dropout), setup) for layers in (1, 2)]
    shape = shape_of(small(kind, 1, dropout))
    counted = activation_bytes_per_layer(shape, setup)
    counted += 2 * shape.matrices * (precision == "autocast")  # their 16-bit copies
    assert counted == pytest.approx(saved[1] - saved[0], rel=0.005)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_guidance_saves_the_bytes_that_are_counted(heads: int, precision: Precision) -> None:
    plain = MemorySetup(2, block_length=128, precision=precision, tapped=False)
    guided = replace(plain, guided_heads=heads, guided_layers=1)
    more = [saved_bytes(small(GPT2, n), guided) - saved_bytes(small(GPT2, n), plain) for n in (1, 2)]
    assert more[1] - more[0] == guidance_saves(shape_of(small(GPT2)), guided)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("kind", [GPT2, LLAMA, NEOX], ids=["gpt2", "llama", "neox"])
def test_gathered_heads_need_gradients_of_all_heads(
    kind: Callable[..., PretrainedConfig], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = [], guided_pass.gather_heads

    def spy(*given):
        gathered = real(*given)
        gathered.grad_fn.register_hook(lambda grads, _: made.append(bytes_of(*grads)))
        return gathered

    monkeypatch.setattr(guided_pass, "gather_heads", spy)
    monkeypatch.setattr(backend, "is_fused", lambda *_: True)  # as with the Triton kernels
    monkeypatch.setattr(backend, "_choose", lambda _, numbers: numbers)
    model = AutoModelForCausalLM.from_config(config := small(kind), dtype=DTYPES[precision]).train()
    plan = GuidancePlan((Assignment(TokenSet("words", frozenset({0})), (0, 2)),))
    with (
        guide(model, plan, method="tap") as guidance,
        torch.autocast("cpu", torch.bfloat16, precision == "autocast"),
    ):
        model(input_ids=torch.zeros(2, 128, dtype=torch.long), use_cache=False)
        guidance.loss().backward()
    shape = shape_of(config)
    setup = MemorySetup(2, block_length=128, precision=precision, guided_heads=2, guided_layers=2)
    whole = estimate_memory(shape, setup).guidance
    monkeypatch.setattr(memory_module, "SMALL", 2 * 128 * shape.heads * shape.head_width - 1)
    assert len(made) == 2 and whole - estimate_memory(shape, setup).guidance == sum(made)


def bytes_of(*tensors: torch.Tensor | None) -> int:
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in tensors if x is not None}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("stage, per_parameter", [(0, 16), (1, 4 + 12 / 8), (2, 2 + 14 / 8), (3, 16 / 8)])
def test_model_states_are_those_of_the_zero_paper(stage: int, per_parameter: float) -> None:
    """Figure 1 of arXiv:1910.02054 counts gradients in 16 bits; we add them up in 32 from stage 2 on."""
    shape = shape_of(scratch_config(SIZES["gpt2"], 50_257, None))
    memory = estimate_memory(shape, MemorySetup(1, block_length=8, zero_stage=stage, ranks=8))
    more = 2 / 8 if stage > 1 else 0
    kept = memory.states + memory.gradients - (2 * 50_000_000 if stage == 3 else 0)  # less the bucket
    assert kept / shape.parameters == pytest.approx(per_parameter + more, rel=1e-6)


def skeleton_parameters(config: PretrainedConfig) -> int:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(deepcopy(config))
    return sum(parameter.numel() for parameter in model.parameters())


def saved_bytes(config: PretrainedConfig, setup: MemorySetup) -> int:
    """Bytes of all storages that autograd keeps after a forward pass, without the model's own.

    The first `guided_heads` heads of every layer are guided.
    """
    dtype = DTYPES[setup.precision]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype).train()
    fuse_activations(model)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}  # references keep their addresses from being reused

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    ids_BT = torch.zeros(setup.micro_batch, setup.block_length, dtype=torch.long)
    with ExitStack() as stack:
        if setup.guided_heads:
            words = TokenSet("words", frozenset({0}))
            plan = GuidancePlan((Assignment(words, tuple(range(setup.guided_heads))),))
            stack.enter_context(guide(model, plan))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, setup.precision == "autocast"))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        output = model(input_ids=ids_BT, use_cache=False)
    assert output.logits.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("name", SIZES)
def test_a_size_has_the_shape_of_its_configuration(name: str) -> None:
    assert gpt2_shape(SIZES[name], 1234) == shape_of(scratch_config(SIZES[name], 1234, None))
