"""One optimizer step: forward and backward of every micro batch, and the step's numbers over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from gaguide.distributed import all_reduce_sum
from gaguide.engine.nonfinite import clip_plain
from gaguide.guidance import Guidance
from gaguide.train.device import give_back_free_memory
from gaguide.train.inputs import Inputs


@dataclass(frozen=True)
class StepNumbers:
    """Means over the global batch; the guidance numbers are None in an unguided run.

    loss = lm_loss + guidance_loss; guided_attention is the mean over heads of their mass on the targets;
    grad_norm is that of the whole gradient before clipping.
    """

    loss: float
    lm_loss: float
    guidance_loss: float | None
    guided_attention: float | None
    grad_norm: float | None


def train_step(
    engine: Any,
    guidance: Guidance | None,
    micro_batches: Iterable[Inputs],
    learning_rate: float,
    logged: bool,
) -> StepNumbers | None:
    """Run one step on this rank's micro batches; the numbers only where `logged`, a collective."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    if guidance is not None and guidance.measure_only:
        guidance.enabled = logged
    sums = _Sums(guidance, engine.device)
    norm = None
    for inputs in micro_batches:
        lm_loss = engine(**inputs, labels=inputs["input_ids"], use_cache=False).loss
        active = guidance is not None and guidance.enabled
        guidance_loss = guidance.loss() if guidance is not None and active else None
        # All micro batches hold equally many tokens, so DeepSpeed's mean over them is the mean over tokens.
        engine.backward(lm_loss if guidance_loss is None else lm_loss + guidance_loss)
        if logged:
            sums.add(lm_loss, guidance_loss)
        norm = clip_plain(engine)
        if engine.is_gradient_accumulation_boundary() and engine.zero_use_cpu_optimizer():
            # Its states come into the host's memory, where backward left holes.
            give_back_free_memory()
        engine.step()
    if not logged:
        return None
    kept = engine.get_global_grad_norm()
    norm = norm if kept is None else kept
    return sums.reduce(None if norm is None else float(norm))


class _Sums:
    """Sums over micro batches and ranks, on the device until they are read."""

    def __init__(self, guidance: Guidance | None, device: torch.device) -> None:
        self.guidance = guidance
        self.heads = len(guidance.heads) if guidance else 0
        # Micro batches, LM loss, guidance loss, then mass × queries and queries of each head.
        self.values = torch.zeros(3 + 2 * self.heads, dtype=torch.float64, device=device)

    def add(self, lm_loss: torch.Tensor, guidance_loss: torch.Tensor | None) -> None:
        self.values[0] += 1
        self.values[1] += lm_loss.detach()
        if self.guidance is not None and guidance_loss is not None:
            self.values[2] += guidance_loss.detach()
            self.values[3:] += self.guidance.attention_sums().flatten()

    def reduce(self, grad_norm: float | None) -> StepNumbers:
        count, lm_loss, guidance_loss, *heads = all_reduce_sum(self.values).tolist()
        lm_loss, guidance_loss = lm_loss / count, guidance_loss / count
        if self.guidance is None:
            return StepNumbers(lm_loss, lm_loss, None, None, grad_norm)
        pairs = zip(heads[: self.heads], heads[self.heads :])
        seen = [mass / queries for mass, queries in pairs if queries]
        attention = sum(seen) / len(seen) if seen else None
        return StepNumbers(lm_loss + guidance_loss, lm_loss, guidance_loss, attention, grad_norm)
