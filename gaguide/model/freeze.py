"""`train.freeze` and `train.trainable`: the parameters that keep their values, by names of parts.

An entry is `embeddings` (of tokens and positions, with a tied output layer), `layers 0-3` or `layers 0,5`, or
a regular expression that is searched for in the parameters' names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gaguide.errors import Fault, FaultCollector, suggestion

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYERS = re.compile(r"layers?\s+(\d+(?:\s*-\s*\d+)?(?:\s*,\s*\d+(?:\s*-\s*\d+)?)*)")


def frozen_parameters(
    model: PreTrainedModel, frozen: Sequence[str], trained: Sequence[str] = ()
) -> tuple[str, ...]:
    """Names of the parameters that are frozen, in the model's order; works on the meta device.

    Frozen are the parameters that an entry of `frozen` matches or, if `trained` has entries, those that none
    of these matches. Raises a `UserError` if an entry matches nothing, or nothing is left to train or freeze.
    """
    names = [name for name, _ in model.named_parameters()]
    field, entries = ("train.trainable", trained) if trained else ("train.freeze", frozen)
    matched: set[str] = set()
    with FaultCollector() as faults:
        for entry in entries:
            try:
                found = _matches(model, names, entry)
            except re.error as error:
                problem = f"is not a valid regular expression ({error})"
                faults.add(Fault(field, problem, "correct it", entry))
                continue
            if not found:
                parents = {name.rsplit(".", 2)[-2] for name in names if name.count(".") > 1}
                parts = {"embeddings", f"layers 0-{_layer_count(names) - 1}", *parents}
                faults.add(Fault(field, "matches no parameter", suggestion(entry, parts), entry))
            matched |= found
        if not faults and len(matched) == len(names):
            every = "names every parameter" if trained else "freezes every parameter"
            remedy = "leave it out" if trained else "leave something to train"
            faults.add(Fault(field, every, remedy, list(entries)))
    return tuple(name for name in names if (name in matched) != bool(trained))


def count_unfrozen(model: PreTrainedModel, frozen: Iterable[str]) -> int:
    """Number of values in the parameters that are not frozen; tied ones count once."""
    fixed = set(frozen)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in fixed)


def freeze(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Turn off the gradients of the parameters with these names."""
    chosen = set(names)
    for name, parameter in model.named_parameters():
        if name in chosen:
            parameter.requires_grad_(False)


def _matches(model: PreTrainedModel, names: list[str], entry: str) -> set[str]:
    if entry.strip() == "embeddings":
        return embedding_parameters(model)
    layers = _LAYERS.fullmatch(entry.strip())
    if not layers:
        return {name for name in names if re.search(entry, name)}
    chosen: set[int] = set()
    for part in layers[1].split(","):
        first, _, last = part.partition("-")
        chosen |= set(range(int(first), int(last or first) + 1))
    if max(chosen) >= _layer_count(names):
        return set()
    return {name for name in names if layer_of(name) in chosen}


def embedding_parameters(model: PreTrainedModel) -> set[str]:
    """Names of the parameters of all embeddings, with a tied output layer."""
    from torch import nn

    held = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in held}


def layer_of(name: str) -> int | None:
    """The first number in a dotted name: 3 for transformer.h.3.mlp.c_fc.weight."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _layer_count(names: list[str]) -> int:
    return max((layer for name in names if (layer := layer_of(name)) is not None), default=0) + 1
