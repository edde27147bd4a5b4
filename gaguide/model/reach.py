"""The lowest layer whose attention trained parameters influence: guided heads below it could not move.

Parameters are found by their names, those of transformers' architectures. One of an unknown kind counts
as an influence in its own layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from gaguide.model.freeze import embedding_parameters, layer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BEFORE_LAYERS = ("embed", "project_in")
"""Parts of the names of modules before the first layer, other than embeddings."""
_AFTER_ATTENTION = frozenset({
    "v_proj", "o_proj", "out_proj", "c_proj", "dense",
    "ln_2", "post_attention_layernorm", "final_layer_norm", "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
})  # fmt: skip
"""Modules of a layer on which its attention map does not depend: values, output projection, later norms."""


def unmoved_layers(model: PreTrainedModel, trained: Collection[str], guided: Iterable[int]) -> list[int]:
    """Those of the `guided` layers whose queries and keys depend on no parameter of `trained`, ascending.

    trained: names of parameters; works on the meta device.
    """
    if not (guided := set(guided)):
        return []
    reached = _first_layer(model, trained)
    return sorted(layer for layer in guided if reached is None or layer < reached)


def movable_from(layers: list[int], guided: Iterable[int]) -> str:
    """A remedy where `layers` of the guided ones are unmoved."""
    rest = sorted(set(guided) - set(layers))
    return f"guide layers from {rest[0]} on" if rest else "guide higher layers"


def _first_layer(model: PreTrainedModel, trained: Collection[str]) -> int | None:
    """The lowest layer whose attention a trained parameter influences; None where none does."""
    from gaguide.model.attention_support import causal_attention_modules

    modules, embeddings = dict(model.named_modules()), embedding_parameters(model)
    output = model.get_output_embeddings()  # `embed_out` in some versions of GPT-NeoX
    attention = {id(module) for module in causal_attention_modules(model).values()}
    inside = tuple(f"{name}." for name, module in modules.items() if id(module) in attention)
    found = []
    for name, parameter in model.named_parameters():
        if name not in trained:
            continue
        layer, owner = layer_of(name), name.rpartition(".")[0].rpartition(".")[2]
        if layer is None:
            is_output = modules.get(name.rpartition(".")[0]) is output
            if name in embeddings or (not is_output and any(part in name for part in _BEFORE_LAYERS)):
                found.append(0)
            continue
        # Outside of attention, matrices and their biases are those of an MLP, vectors those of norms.
        is_norm = (
            parameter.ndim == 1 and getattr(modules[name.rpartition(".")[0]], "weight", parameter).ndim == 1
        )
        within = owner not in _AFTER_ATTENTION and (name.startswith(inside) or is_norm)
        found.append(layer if within else layer + 1)
    return min(found, default=None)
