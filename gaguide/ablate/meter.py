"""Attention of heads and norms of their outputs, by sequence, in passes without an intervention.

The norm of a value is that of its contribution to the residual stream, after the output projection W of its
head: |W v|, computed as sqrt(v' G v) with G = W' W. Weighted by attention (Kobayashi et al. 2020) it shows
how much a head writes from its targets: a head may attend to a word whose value is all but zero, a sink.

Shapes: B batch, H heads, h chosen heads of a layer, Q query rows, T positions, D head width, E model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gaguide.ablate.subjects import Key, Subject, by_layer
from gaguide.interventions.edges import edge_mask, visible_to_any
from gaguide.model.attention_consumer import AttentionCall, PassHandler, PassInputs
from gaguide.model.attention_rows import masked_scores
from gaguide.model.attention_support import causal_attention_modules, unwrap_model

_PROJECTIONS = ("o_proj", "c_proj", "out_proj", "dense", "wo")
"""Names of the output projection in transformers' attention modules."""
_ROWS = 256


@dataclass(frozen=True)
class Reading:
    """One head in one pass: sums by sequence [B], fp64."""

    mass: torch.Tensor
    """Attention on targets, over queries that see one."""
    queries: torch.Tensor
    """Number of these queries."""
    target_norm: torch.Tensor | None
    """Attention-weighted norms of the targets' values, over these queries."""
    weighted_norm: torch.Tensor | None
    """The same over all keys."""
    output_norm: torch.Tensor | None
    """Norms of the head's output, over all tokens."""
    tokens: int
    """Tokens of a sequence."""


class Meter:
    """A consumer that reads the subjects' heads; `readings` is of the latest pass."""

    changes_outputs = False

    def __init__(self, model: nn.Module, subjects: Sequence[Subject]) -> None:
        self.subjects = by_layer(subjects)
        self.readings: dict[Key, Reading] = {}
        config = unwrap_model(model).config.get_text_config()
        modules = causal_attention_modules(model)
        self.grams = {
            layer: _gram(modules[layer], int(config.num_attention_heads)) for layer in self.subjects
        }
        """Layer → G of every head [H, D, D]; None where its output projection is not known."""

    @property
    def layers(self) -> list[int]:
        """Layers with a subject."""
        return list(self.subjects)

    def start_pass(self, inputs: PassInputs) -> PassHandler:
        """The handler that fills `readings`."""
        return _MeterPass(self, inputs)


class _MeterPass(PassHandler):
    def __init__(self, meter: Meter, inputs: PassInputs) -> None:
        self.meter, self.inputs = meter, inputs

    @torch.no_grad()
    def transform_output(self, call: AttentionCall, out_BTHD: torch.Tensor) -> torch.Tensor:
        subjects, gram_HDD = self.meter.subjects[call.layer], self.meter.grams[call.layer]
        heads = [subject.head for subject in subjects]
        sums = self._sums(call, subjects, _value_norms(call, heads, gram_HDD))
        written = None if gram_HDD is None else _norms(out_BTHD[:, :, heads], gram_HDD[heads]).sum(1)
        for at, subject in enumerate(subjects):
            known = gram_HDD is not None
            self.meter.readings[subject.key] = Reading(
                sums[0][:, at],
                sums[1][:, at],
                sums[2][:, at] if known else None,
                sums[3][:, at] if known else None,
                None if written is None else written[:, at],
                out_BTHD.shape[1],
            )
        return out_BTHD

    def _sums(
        self, call: AttentionCall, subjects: Sequence[Subject], norms_BhT: torch.Tensor | None
    ) -> torch.Tensor:
        """[4, B, h]: mass, queries, target_norm, weighted_norm."""
        assert self.inputs.ids_BT is not None
        ids_BT, heads = self.inputs.ids_BT, [subject.head for subject in subjects]
        B, T = ids_BT.shape
        mask_BQK = visible_to_any(call.mask, T)
        sums = torch.zeros(4, B, len(subjects), dtype=torch.float64, device=ids_BT.device)
        for start in range(0, T, _ROWS):
            stop = min(start + _ROWS, T)
            scores_BhQT = masked_scores(call, heads, start, stop)
            hidden_BhQT = scores_BhQT == -torch.inf
            h_BhQT = torch.softmax(scores_BhQT, -1).masked_fill(
                hidden_BhQT, 0.0
            )  # also for rows with everything hidden
            edges: dict[int, torch.Tensor] = {}
            for at, subject in enumerate(subjects):
                if id(subject.pattern) not in edges:
                    edges[id(subject.pattern)] = edge_mask(
                        subject.pattern, None, ids_BT, start, stop, mask_BQK
                    )
                edges_BQT = edges[id(subject.pattern)]
                seen_BQ = (edges_BQT & ~hidden_BhQT[:, at]).any(-1)
                on_BQT = h_BhQT[:, at] * edges_BQT
                sums[0, :, at] += (on_BQT.sum(-1) * seen_BQ).double().sum(-1)
                sums[1, :, at] += seen_BQ.sum(-1)
                if norms_BhT is not None:
                    norms_BT = norms_BhT[:, at, None].to(h_BhQT.dtype)
                    sums[2, :, at] += ((on_BQT * norms_BT).sum(-1) * seen_BQ).double().sum(-1)
                    sums[3, :, at] += ((h_BhQT[:, at] * norms_BT).sum(-1) * seen_BQ).double().sum(-1)
        return sums


def _value_norms(
    call: AttentionCall, heads: Sequence[int], gram_HDD: torch.Tensor | None
) -> torch.Tensor | None:
    """|W v| of each key [B, h, T]."""
    if gram_HDD is None:
        return None
    groups = call.q_BHTD.shape[1] // call.v_BGTD.shape[1]
    v_BThD = call.v_BGTD[:, [head // groups for head in heads]].transpose(1, 2)
    return _norms(v_BThD, gram_HDD[list(heads)]).transpose(1, 2)


def _norms(x_BThD: torch.Tensor, gram_hDD: torch.Tensor) -> torch.Tensor:
    """|W x| [B, T, h], fp64."""
    x_BThD = x_BThD.double()
    squares = torch.einsum("bthd,hde,bthe->bth", x_BThD, gram_hDD.to(x_BThD), x_BThD)
    return squares.clamp(min=0).sqrt()


def output_projection(module: nn.Module, n_heads: int) -> torch.Tensor | None:
    """The output projection of an attention module by head, W [H, D, E]; None where it has another form."""
    for name in _PROJECTIONS:
        inner: Any = getattr(module, name, None)
        weight = getattr(inner, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 2:
            weight_IE = weight.detach().T if isinstance(inner, nn.Linear) else weight.detach()
            if weight_IE.shape[0] % n_heads == 0:
                return weight_IE.unflatten(0, (n_heads, -1))
    return None


def _gram(module: nn.Module, n_heads: int) -> torch.Tensor | None:
    weight_HDE = output_projection(module, n_heads)
    if weight_HDE is None:
        return None
    weight_HDE = weight_HDE.double()
    return weight_HDE @ weight_HDE.mT


def sum_readings(parts: Sequence[Mapping[Key, Reading]]) -> dict[Key, Reading]:
    """Readings of several passes as one, sequences in order."""

    def joined(key: Key, name: str) -> Any:
        values = [getattr(part[key], name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    return {
        key: Reading(
            mass=joined(key, "mass"),
            queries=joined(key, "queries"),
            target_norm=joined(key, "target_norm"),
            weighted_norm=joined(key, "weighted_norm"),
            output_norm=joined(key, "output_norm"),
            tokens=first.tokens,
        )
        for key, first in parts[0].items()
    }
