"""How the global batch is split over ranks and accumulation steps. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gaguide.errors import Fault, UserError


@dataclass(frozen=True)
class BatchPlan:
    """global_batch = micro_batch × accumulation × world_size, in sequences."""

    global_batch: int
    micro_batch: int
    accumulation: int
    world_size: int


def divisors(share: int) -> list[int]:
    """Micro batches that split a rank's share of the global batch, ascending."""
    return [size for size in range(1, min(share, 10_000) + 1) if share % size == 0]


def plan_batch(global_batch: int, micro_batch: int | Literal["auto"] | None, world_size: int) -> BatchPlan:
    """The split; without `micro_batch`, or before `auto` is settled, a rank's share in one forward pass."""
    if global_batch % world_size:
        near = max(world_size, round(global_batch / world_size) * world_size)
        raise UserError(
            Fault(
                "train.global_batch",
                f"does not divide by the {world_size} ranks",
                f"use a multiple of {world_size}, e.g. {near}, or another number of ranks",
                global_batch,
            )
        )
    share = global_batch // world_size
    if micro_batch is None or micro_batch == "auto":
        micro_batch = share
    if share % micro_batch:
        raise UserError(
            Fault(
                "train.micro_batch",
                f"does not divide a rank's share of {share} sequences (global batch {global_batch}, "
                f"{world_size} ranks)",
                f"use one of {', '.join(map(str, divisors(share)[-12:]))}",
                micro_batch,
            )
        )
    return BatchPlan(global_batch, micro_batch, share // micro_batch, world_size)
