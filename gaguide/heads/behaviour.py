"""Where heads look now, whatever the words: the first, the previous, the same token; induction; copying.

Shapes: B batch, H heads, G key/value heads, Q query rows, T positions, D head width, E model width,
V vocabulary, N sampled keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from gaguide.ablate.meter import output_projection
from gaguide.model.attention_consumer import AttentionCall, PassHandler, PassInputs
from gaguide.model.attention_hooks import attach_consumer
from gaguide.model.attention_rows import attention_rows
from gaguide.model.attention_support import causal_attention_modules, unwrap_model

Key = tuple[int, int]
"""(layer, head)."""
HeadType = Literal["first-token sink", "previous token", "self", "induction", "copying", "other"]
_ROWS = 256
_LAST_NORMS = ("ln_f", "norm", "final_layer_norm", "final_layernorm")
_SAMPLED = 192
"""Keys of a batch on which copying is measured."""
THRESHOLDS: Mapping[HeadType, float] = {
    "induction": 0.3, "previous token": 0.4, "first-token sink": 0.5, "self": 0.4, "copying": 1.0,
}  # fmt: skip
"""Least score of each type; the first one reached names the head."""


@dataclass(frozen=True)
class Behaviour:
    """Scores of one head."""

    first: float
    """Mean attention on the first token."""
    previous: float
    """Mean attention on the token before."""
    same: float
    """Mean attention on the query's own token."""
    induction: float
    """In random tokens that are repeated: attention on the token after the query's earlier occurrence."""
    copying: float | None
    """How much a key's value raises the key's own token: the token's direct logit minus the mean over other
    sampled tokens, in their standard deviations, mean over keys; None where the projections are not known."""

    @property
    def type(self) -> HeadType:
        """The first type whose threshold its score reaches."""
        scores: dict[HeadType, float | None] = {
            "induction": self.induction, "previous token": self.previous, "first-token sink": self.first,
            "self": self.same, "copying": self.copying,
        }  # fmt: skip
        return next((name for name, least in THRESHOLDS.items() if (scores[name] or 0.0) >= least), "other")


@torch.no_grad()
def behaviours(
    model: PreTrainedModel, batches: Sequence[Mapping[str, torch.Tensor]], seed: int = 0
) -> dict[Key, Behaviour]:
    """Scores of every head of `model`, in eval mode, over `batches` and over repeated random tokens."""
    places = _Places(model)
    with attach_consumer(model, places.layers, places):
        for batch in batches:
            model.base_model(**batch, use_cache=False)
    length = min(64, batches[0]["input_ids"].shape[1] // 2)
    repeated = _Induction(length)
    ids_BT = _repeated_ids(batches, length, seed)
    with attach_consumer(model, places.layers, repeated):
        model.base_model(input_ids=ids_BT, use_cache=False)
    found = {}
    for layer in places.layers:
        copied = places.copied.get(layer)
        for head in range(places.sums[layer].shape[1]):
            first, previous, same = (float(value) / places.rows for value in places.sums[layer][:, head])
            found[layer, head] = Behaviour(
                first=first,
                previous=previous,
                same=same,
                induction=float(repeated.mass[layer][head]),
                copying=None if copied is None else float(copied[head]) / places.keys,
            )
    return found


def _repeated_ids(batches: Sequence[Mapping[str, torch.Tensor]], length: int, seed: int) -> torch.Tensor:
    """Tokens of the text in random order, twice [8, 2 × length]: known ids without their context."""
    known = torch.unique(torch.cat([batch["input_ids"].flatten() for batch in batches]))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(known), (8, length), generator=generator).to(known.device)
    return torch.cat([known[chosen]] * 2, 1)


@dataclass
class _Induction:
    """Attention of the second copy on the token after the same token in the first."""

    length: int
    """Tokens of each copy."""
    mass: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer → mean attention by head [H]."""
    changes_outputs = False

    def start_pass(self, inputs: PassInputs) -> PassHandler:
        return _Handler(self)

    def read(self, call: AttentionCall, ids_BT: torch.Tensor | None) -> None:
        heads = range(call.q_BHTD.shape[1])
        T = call.q_BHTD.shape[2]
        h_BHQT = attention_rows(call, list(heads), self.length, T)
        after = torch.arange(self.length, device=h_BHQT.device) + 1  # of query length + i: key i + 1
        index = after.view(1, 1, -1, 1).expand(*h_BHQT.shape[:3], 1)
        self.mass[call.layer] = h_BHQT.gather(-1, index).double().mean((0, 2, 3)).cpu()


class _Places:
    """Sums of attention by place, and of copying, over passes."""

    changes_outputs = False

    def __init__(self, model: nn.Module) -> None:
        inner = unwrap_model(model)
        modules = causal_attention_modules(model)
        heads = int(inner.config.get_text_config().num_attention_heads)
        self.layers = list(modules)
        self.projections = {layer: output_projection(module, heads) for layer, module in modules.items()}
        self.unembedding_VE = _unembedding(inner)
        self.sums = {layer: torch.zeros(3, heads, dtype=torch.float64) for layer in modules}
        self.copied: dict[int, torch.Tensor] = {}
        self.rows = self.keys = 0
        self._counted: Any = None

    def start_pass(self, inputs: PassInputs) -> PassHandler:
        return _Handler(self, inputs)

    def read(self, call: AttentionCall, ids_BT: torch.Tensor | None) -> None:
        assert ids_BT is not None
        B, H, T, _ = call.q_BHTD.shape
        if call.layer == self.layers[0]:
            self.rows += B * (T - 2)
            self.keys += len(_sample(ids_BT))
        # Rows from the third on, where position 0, one token back and the query itself are three places.
        for start in range(2, T, _ROWS):
            stop = min(start + _ROWS, T)
            h_BHQT = attention_rows(call, list(range(H)), start, stop).double()
            at = torch.arange(start, stop, device=h_BHQT.device)
            for place, column in enumerate((torch.zeros_like(at), at - 1, at)):
                index = column.view(1, 1, -1, 1).expand(B, H, -1, 1)
                self.sums[call.layer][place] += h_BHQT.gather(-1, index).sum((0, 2, 3)).cpu()
        self._read_copying(call, ids_BT)

    def _read_copying(self, call: AttentionCall, ids_BT: torch.Tensor) -> None:
        weight_HDE = self.projections[call.layer]
        if weight_HDE is None or self.unembedding_VE is None:
            return
        groups = call.q_BHTD.shape[1] // call.v_BGTD.shape[1]
        flat = _sample(ids_BT)
        v_NGD = call.v_BGTD.transpose(1, 2).flatten(0, 1)[flat].float()
        tokens_N = ids_BT.flatten()[flat]
        u_NE = self.unembedding_VE[tokens_N].float()
        scores = []
        for head in range(call.q_BHTD.shape[1]):
            written_NE = v_NGD[:, head // groups] @ weight_HDE[head].float()
            logits_NN = written_NE @ u_NE.T  # of each key, the direct logit of every sampled token
            own_N = logits_NN.diagonal()
            others = tokens_N[:, None] != tokens_N[None, :]
            count_N = others.sum(1).clamp(min=1)
            mean_N = (logits_NN * others).sum(1) / count_N
            spread_N = (((logits_NN - mean_N[:, None]) ** 2 * others).sum(1) / count_N).sqrt()
            scores.append(((own_N - mean_N) / spread_N.clamp(min=1e-9)).double().sum())
        found_H = torch.stack(scores).cpu()
        self.copied[call.layer] = self.copied.get(call.layer, torch.zeros_like(found_H)) + found_H


class _Handler(PassHandler):
    def __init__(self, reader: Any, inputs: PassInputs | None = None) -> None:
        self.reader, self.inputs = reader, inputs

    def transform_output(self, call: AttentionCall, out_BTHD: torch.Tensor) -> torch.Tensor:
        self.reader.read(call, None if self.inputs is None else self.inputs.ids_BT)
        return out_BTHD


def _sample(ids_BT: torch.Tensor) -> torch.Tensor:
    """Flat indices of keys, spread evenly over a batch."""
    count = min(_SAMPLED, ids_BT.numel())
    return torch.arange(count, device=ids_BT.device) * ids_BT.numel() // count


def _unembedding(model: Any) -> torch.Tensor | None:
    """The output embedding behind the last norm at a fixed scale [V, E]; None where it has another width."""
    weight_VE = getattr(model.get_output_embeddings(), "weight", None)
    if weight_VE is None or weight_VE.shape[1] != model.config.get_text_config().hidden_size:
        return None
    weight_VE = weight_VE.detach()
    norm = next(
        (one for name, one in model.base_model.named_modules()
         if name.rpartition(".")[2] in _LAST_NORMS and not any(map(str.isdigit, name.split(".")))),
        None,
    )  # fmt: skip
    if norm is None:
        return weight_VE
    # Norms store their gain in different ways (Gemma's is 1 + weight): it is derived from their outputs.
    one_E = torch.ones_like(weight_VE[0])
    sign_E = one_E.clone()
    sign_E[1::2] = -1
    weight_VE = weight_VE * ((norm(sign_E) - norm(-sign_E)) / 2 * sign_E)
    is_centred = bool((norm(one_E) - norm(-one_E)).abs().max() < 1e-3)  # LayerNorm subtracts the mean
    return weight_VE - weight_VE.mean(1, keepdim=True) if is_centred else weight_VE
