"""The shape of a model, from its transformers configuration: layers, widths, vocabulary, parameters.

Configurations name the same things differently (n_layer, num_hidden_layers …); transformers' attribute maps
unify the common names, and this module the rest. Parameters, matrices and saved activations of the families
below are computed; those of other architectures are counted on a model without weights.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gaguide.errors import UserError, first_line
from gaguide.model.saved_bytes import SavedBytes, saved_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from gaguide.model.sizes import Size

ATTENTION_DROPOUT_FIELDS = ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob")
"""Names of attention's dropout probability in transformers configurations."""
DROPOUT_FIELDS = (
    *ATTENTION_DROPOUT_FIELDS, "resid_pdrop", "embd_pdrop", "hidden_dropout", "dropout",
    "hidden_dropout_prob", "activation_dropout",
)  # fmt: skip
"""Names of dropout probabilities in transformers configurations."""

# Vectors of a family's blocks, apart from matrices: biases of q, k, v; of the attention's output; of the MLP
# (a name is read from the configuration). Then vectors per norm, and whether the MLP is gated.
_FAMILIES: dict[str, tuple[bool | str, bool | str, bool | str, int, bool]] = {
    "gpt2": (True, True, True, 2, False),
    "gpt_neox": ("attention_bias", "attention_bias", True, 2, False),
    "llama": ("attention_bias", "attention_bias", "mlp_bias", 1, True),
    "mistral": (False, False, False, 1, True),
    "qwen2": (True, False, False, 1, True),
}
_GATED = frozenset({"silu", "swish", "swiglu"})


@dataclass(frozen=True)
class ModelShape:
    """The shape of a causal decoder."""

    kind: str
    """transformers' model type, such as `gpt2`."""
    layers: int
    """Transformer blocks."""
    width: int
    """Hidden size."""
    heads: int
    """Query heads of a block."""
    kv_heads: int
    """Key/value heads of a block; fewer than `heads` under grouped-query attention."""
    head_width: int
    """Elements of one head's query."""
    mlp_width: int
    """Inner size of the MLP."""
    mlp_matrices: int
    """2, or 3 if the MLP is gated."""
    activation: str
    """Name of the MLP's activation."""
    vocab: int
    """Entries of the vocabulary."""
    positions: int
    """Longest sequence, in tokens; 0 if the configuration does not say."""
    tied: bool
    """Whether the output layer shares the token embedding's weights."""
    dropout: bool
    """Whether any dropout probability is above 0."""
    parameters: int = 0
    """All parameters, a tied output layer counted once."""
    matrices: int = 0
    """Weights in the matrices of all blocks: q, k, v, output, MLP."""
    saved: SavedBytes | None = None
    """Bytes that autograd keeps of a block, where they are measured instead of computed (cost/memory.py)."""

    @property
    def head_matrix(self) -> int:
        """Weights of the output layer, tied or not."""
        return self.vocab * self.width

    @property
    def block_parameters(self) -> int:
        """Parameters of one block: all but the embeddings, divided evenly (final norm included)."""
        return (self.parameters - self.embeddings) // self.layers

    @property
    def embeddings(self) -> int:
        """Parameters of token embedding, learned positions and an untied output layer."""
        learned = self.positions * self.width if self.kind == "gpt2" else 0
        return self.head_matrix * (1 if self.tied else 2) + learned


def shape_of(config: PretrainedConfig, with_saved: bool = True) -> ModelShape:
    """The shape of a causal language model.

    with_saved: False leaves out what is measured of activations, for which a model takes a second or two.
    Raises a `UserError` if the configuration lacks a size, or is a mixture of experts.
    """
    text = config.get_text_config()
    kind = str(text.model_type)
    if getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None):
        remedy = "choose a dense model: a mixture of experts uses only a part of its weights for each token"
        raise UserError.of("model.name", "is a mixture of experts, which is not supported here", remedy, kind)
    sizes = {
        name: getattr(text, name, None)
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    }
    missing = [name for name, value in sizes.items() if not value]
    if missing:
        remedy = "choose a causal decoder of transformers"
        raise UserError.of("model.name", f"its configuration has no {', '.join(missing)}", remedy, kind)
    layers, width, heads, vocab = (int(value or 0) for value in sizes.values())
    activation = str(_first(text, "activation_function", "hidden_activation", "hidden_act") or "gelu")
    gated = _FAMILIES[kind][4] if kind in _FAMILIES else activation in _GATED
    shape = ModelShape(
        kind=kind,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=int(_first(text, "num_key_value_heads") or heads),
        head_width=int(_first(text, "head_dim") or width // heads),
        mlp_width=int(_first(text, "n_inner", "intermediate_size", "ffn_dim") or 4 * width),
        mlp_matrices=3 if gated else 2,
        activation=activation,
        vocab=vocab,
        positions=int(_first(text, "max_position_embeddings") or 0),
        tied=bool(config.tie_word_embeddings),
        dropout=any(getattr(text, name, 0) for name in DROPOUT_FIELDS),
    )
    return _counted(shape, text) if kind in _FAMILIES else _counted_skeleton(shape, config, with_saved)


def gpt2_shape(size: Size, vocab: int) -> ModelShape:
    """The shape of a GPT-2 of that size: `shape_of` its `scratch_config`, without importing transformers."""
    shape = ModelShape(
        kind="gpt2",
        layers=size.layers,
        width=size.width,
        heads=size.heads,
        kv_heads=size.heads,
        head_width=size.width // size.heads,
        mlp_width=4 * size.width,
        mlp_matrices=2,
        activation="gelu_new",
        vocab=vocab,
        positions=size.positions,
        tied=True,
        dropout=True,
    )
    return _counted(shape, None)


def _first(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _counted(shape: ModelShape, config: Any) -> ModelShape:
    """The shape of one of the families, with its parameters and matrices."""
    qkv_bias, out_bias, mlp_bias, norm, _ = (
        bool(getattr(config, trait, False)) if isinstance(trait, str) else trait
        for trait in _FAMILIES[shape.kind]
    )
    query, key = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    matrices = shape.width * (2 * query + 2 * key + shape.mlp_matrices * shape.mlp_width)
    biases = qkv_bias * (query + 2 * key) + out_bias * shape.width
    biases += mlp_bias * ((shape.mlp_matrices - 1) * shape.mlp_width + shape.width)
    vectors = shape.layers * (biases + 2 * norm * shape.width) + norm * shape.width
    matrices *= shape.layers
    return replace(shape, parameters=matrices + vectors + shape.embeddings, matrices=matrices)


_skeletons: dict[str, tuple[int, int]] = {}
"""Configuration → parameters, and weights in matrices of blocks: a run asks at every logged step."""
_saved: dict[str, SavedBytes | None] = {}


def _counted_skeleton(shape: ModelShape, config: PretrainedConfig, with_saved: bool) -> ModelShape:
    """The shape of any other model, with what a model without weights has."""
    key = config.to_json_string(use_diff=False)
    if key not in _skeletons:
        _skeletons[key] = _count_skeleton(config)
    if with_saved and key not in _saved:
        _saved[key] = saved_bytes(config)
    parameters, matrices = _skeletons[key]
    saved = _saved[key] if with_saved else None
    return replace(shape, parameters=parameters, matrices=matrices, saved=saved)


def _count_skeleton(config: PretrainedConfig) -> tuple[int, int]:
    """All parameters, and those in matrices other than embeddings and the output layer."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(deepcopy(config))
    except Exception as error:  # whatever a configuration makes a model's constructor raise
        reason = first_line(error)
        remedy = "choose a causal decoder of transformers"
        raise UserError.of("model.name", f"cannot be built ({reason})", remedy) from None
    outside = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    outside.append(model.get_output_embeddings())
    others = {id(weight) for module in outside if module is not None for weight in module.parameters()}
    matrices = [each for each in model.parameters() if each.ndim == 2 and id(each) not in others]
    return sum(each.numel() for each in model.parameters()), sum(each.numel() for each in matrices)
