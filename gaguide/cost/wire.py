"""Bytes that one rank sends in an optimizer step, by collective, as DeepSpeed 0.19 issues them.

Ring collectives over N ranks: an all-reduce of S bytes sends 2 S (N-1)/N per rank, reduce-scatter and
all-gather send S (N-1)/N each (Patarasuk & Yuan 2009; ZeRO, arXiv:1910.02054, section 7: stages 0 to 2 send
2 P elements, stage 3 sends 3 P). `benchmarks/plan.py` compares the payloads with DeepSpeed's comms logger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gaguide.cost.memory import WEIGHT_BYTES, MemorySetup
from gaguide.model import ModelShape

Operation = Literal["all_reduce", "reduce_scatter", "all_gather"]


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a step."""

    name: str
    """Name of the tensors, such as `gradients`."""
    operation: Operation
    """The collective operation."""
    payload: int
    """Bytes of the whole tensors that are reduced or gathered, summed over `calls`."""
    calls: int
    """How often the operation is called."""
    hidden: bool = False
    """Whether it overlaps with compute."""

    def sent(self, ranks: int) -> float:
        """Bytes that one rank sends in a ring of `ranks`."""
        passes = 2 if self.operation == "all_reduce" else 1
        return passes * self.payload * (ranks - 1) / ranks


def collectives(shape: ModelShape, setup: MemorySetup) -> tuple[Collective, ...]:
    """The collectives of one step; empty on a single rank."""
    if setup.ranks == 1:
        return ()
    P, width, micro_batches = (
        shape.parameters + setup.added,
        WEIGHT_BYTES[setup.precision],
        setup.accumulation,
    )
    trained = P if setup.trained is None else setup.trained
    buckets = -(-trained // max(setup.bucket, 1))
    if setup.zero_stage == 0:
        return (Collective("gradients", "all_reduce", width * trained, buckets),)
    if setup.zero_stage in (1, 2):
        reductions = micro_batches if setup.zero_stage == 2 else 1
        return (
            Collective(
                "gradients", "all_reduce", reductions * width * trained, reductions * buckets, setup.overlap
            ),
            Collective("updated weights", "all_gather", width * trained, 2),
        )
    # Forward and backward both gather the weights, and the output layer gathers tied embeddings once more in
    # each. Weights still gathered from the previous use are not gathered again.
    repeated = P + (2 * shape.head_matrix if shape.tied else 0)
    repeated -= repeated * min(P, setup.kept_parameters) // P
    gathered = micro_batches * width * (P + repeated)
    gathers = gathered // (width * setup.gather) + 1
    return (
        Collective("weights", "all_gather", gathered, gathers, setup.overlap),
        Collective(
            "gradients",
            "reduce_scatter",
            micro_batches * width * trained,
            micro_batches * buckets,
            setup.overlap,
        ),
    )
