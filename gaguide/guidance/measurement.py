"""Measure a model on held-out blocks: language-model loss and, by head, attention mass on its targets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from gaguide.distributed import all_reduce_sum
from gaguide.guidance.attach import Guidance, guide
from gaguide.guidance.cues import BANDS, Cues, document_index
from gaguide.guidance.plan import GuidancePlan
from gaguide.model.attention_hooks import suspend_observers
from gaguide.model.attention_support import unwrap_model

IGNORED = -100
"""Label of tokens on which no loss is computed, as in transformers."""


@dataclass(frozen=True)
class HeadAttention:
    """Attention mass of one guided head."""

    layer: int
    """Index of the layer."""
    head: int
    """Index of the head within the layer."""
    pattern: str
    """Name of the head's pattern."""
    attention: float | None
    """Mean attention mass on the pattern's targets, in [0, 1]; None if no query could see a target, NaN
    where attention is not finite."""


@dataclass(frozen=True)
class Measurement:
    """Results over the batches of all ranks."""

    lm_loss: float
    """Language-model loss, in nats per predicted token; NaN where no token counts."""
    guided_attention: float | None
    """Mean of the heads' attention mass; None without a head that could see a target, NaN where one is."""
    per_head: tuple[HeadAttention, ...]
    """Attention mass of every guided head, in order of (layer, head)."""
    sequences: int
    """Number of sequences measured."""
    near_cue: Mapping[str, Any] | None = None
    """The loss by distance after cues, as from `Cues.record`; None where it was not requested."""

    @property
    def unseen(self) -> tuple[str, ...]:
        """Patterns of the heads for which no query could see a target."""
        return tuple(dict.fromkeys(head.pattern for head in self.per_head if head.attention is None))

    def as_record(self) -> dict[str, Any]:
        """The measurement as plain JSON values."""
        found = asdict(self)
        return found if self.near_cue is not None else {k: v for k, v in found.items() if k != "near_cue"}


def measure(
    model: PreTrainedModel, plan: GuidancePlan | None, batches_BT: Iterable[torch.Tensor]
) -> Measurement:
    """Measure `model` under `plan` (None: loss only); see `measure_guided` for batches and ranks.

    Inside a `guide` block the model is measured unguided, and the results of the guided pass before are kept.
    """
    batches = (({"input_ids": ids_BT}, True) for ids_BT in batches_BT)
    model = unwrap_model(model)
    with suspend_observers(model):
        if plan is None or plan.is_empty:
            return measure_guided(model, None, batches)
        with guide(model, plan, measure_only=True) as guidance:
            return measure_guided(model, guidance, batches)


@torch.no_grad()
def measure_guided(
    model: PreTrainedModel,
    guidance: Guidance | None,
    batches: Iterable[tuple[dict[str, torch.Tensor], bool]],
    cues: Cues | None = None,
) -> Measurement:
    """Measure `model` in eval mode over pairs of its keyword arguments, on its device, and whether they
    count.

    `guidance` is that of the `with guide(...)` block around the call. It only measures here, so that the loss
    is the model's own. Every rank passes its own batches and gets the result over all ranks. Under ZeRO-3 all
    ranks must pass the same number of batches, filled up with ones that do not count. `cues` splits the
    loss by distance after them; where documents are isolated, those of other documents do not count.
    """
    heads = list(guidance.heads) if guidance else []
    # Loss × predicted tokens, predicted tokens, sequences; then mass × queries and queries of each head.
    sums = torch.zeros(3 + 2 * len(heads), dtype=torch.float64, device=model.device)
    near = torch.zeros(len(BANDS) if cues else 0, 2, dtype=torch.float64, device=model.device)
    was_training = model.training
    model.eval()
    try:
        with guidance.measuring() if guidance else nullcontext():
            for inputs, counted in batches:
                ids_BT = inputs["input_ids"]
                labels_BT = inputs.get("labels", ids_BT)
                output = model(**{**inputs, "labels": labels_BT}, use_cache=False)
                loss = output.loss.double()
                if not counted:
                    continue
                counts_BT = labels_BT != IGNORED
                tokens = counts_BT[:, 1:].sum().to(loss)
                # Without a token that counts, the mean is not a number.
                total = torch.where(tokens > 0, loss * tokens, 0)
                sums[:3] += torch.stack([total, tokens, loss.new_tensor(len(ids_BT))])
                if cues:
                    near += cues.loss_sums(output.logits, ids_BT, document_index(inputs), counts_BT)
                if guidance:
                    sums[3:] += guidance.attention_sums().flatten()
    finally:
        model.train(was_training)
    loss_sum, tokens_sum, sequences, *by_head = all_reduce_sum(sums).tolist()
    near_cue = cues.record(all_reduce_sum(near).tolist()) if cues else None
    per_head = tuple(
        HeadAttention(
            layer, head, guidance.heads[layer, head].pattern.name, mass / queries if queries else None
        )
        for (layer, head), mass, queries in zip(heads, by_head[: len(heads)], by_head[len(heads) :])
        if guidance
    )
    seen = [head.attention for head in per_head if head.attention is not None]
    return Measurement(
        loss_sum / tokens_sum if tokens_sum else math.nan,
        sum(seen) / len(seen) if seen else None,
        per_head,
        round(sequences),
        near_cue,
    )
