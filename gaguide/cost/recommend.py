"""The fastest configuration that fits: ZeRO stage, offload, checkpointing and micro batch, all tried."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from gaguide.cost.estimate import Plan, estimate
from gaguide.cost.request import PlanRequest, check
from gaguide.errors import Fault, UserError

CHOICES: dict[str, tuple[Any, ...]] = {
    "zero_stage": (0, 1, 2, 3),
    "offload_optimizer": ("none", "cpu"),
    "checkpointing": (False, True),
}
FREE = (*CHOICES, "micro_batch")
"""Settings that `recommend` may choose."""


def recommend(request: PlanRequest, free: Collection[str] = FREE) -> list[Plan]:
    """Plans that fit, the fastest first; equally fast ones by simplicity (lower stage, no offload).

    free: names of settings to choose, the others stay as requested. A `UserError` where nothing fits: it
    names what comes nearest.
    """
    plans = [estimate(candidate) for candidate in _candidates(request, free)]
    fitting = sorted((plan for plan in plans if plan.fits), key=_order)
    if fitting:
        return fitting
    if not plans:
        check(request)  # its faults are the reason
        raise UserError(
            Fault("--global-batch", "no setting can split it", "choose another", request.global_batch)
        )
    nearest = min(plans, key=lambda plan: plan.needed)
    raise UserError(
        Fault(
            "--gpu",
            f"nothing fits: the least is {nearest.needed / 2**30:.1f} GiB a GPU (stage "
            f"{nearest.request.zero_stage}, micro batch {nearest.request.setup.micro_batch}) of "
            f"{nearest.capacity / 2**30:.0f}",
            "use more GPUs, larger ones, or a shorter block",
            request.gpu,
        )
    )


def _order(plan: Plan) -> tuple[float, int, bool, bool]:
    request = plan.request
    # Within a thousandth times are equal: the model knows no better.
    coarse = float(f"{plan.step.total:.3g}")
    return coarse, request.zero_stage, request.offload_optimizer != "none", request.checkpointing


def _candidates(request: PlanRequest, free: Collection[str]) -> Iterator[PlanRequest]:
    """Every allowed combination of the free settings."""
    names = [name for name in CHOICES if name in free]
    for values in product(*(CHOICES[name] for name in names)):
        chosen = replace(request, **dict(zip(names, values)))
        for micro_batch in _micro_batches(request) if "micro_batch" in free else [request.micro_batch]:
            candidate = replace(chosen, micro_batch=micro_batch)
            try:
                check(candidate)
            except UserError:
                continue
            yield candidate


def _micro_batches(request: PlanRequest) -> list[int]:
    """Divisors of a rank's share up to 256 sequences."""
    if request.ranks < 1 or request.global_batch % request.ranks:
        return [1]
    share = request.global_batch // request.ranks
    return [size for size in range(1, min(share, 256) + 1) if share % size == 0]
