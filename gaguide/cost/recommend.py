"""`recommend`: tries every ZeRO stage, offload, checkpointing and micro batch, and returns those that fit."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from gaguide.cost.estimate import CostEstimate, estimate
from gaguide.cost.hardware import GIB
from gaguide.cost.published import spread
from gaguide.cost.request import CostRequest, check
from gaguide.errors import UserError

CHOICES: dict[str, tuple[Any, ...]] = {
    "zero_stage": (0, 1, 2, 3),
    "offload_optimizer": ("none", "cpu"),
    "checkpointing": (False, True),
}
CHOOSABLE = (*CHOICES, "micro_batch", "precision")
"""Settings that `recommend` can choose."""
_STAGE_0_SLACK = 1.05
"""Stage 0, where the host works least, is preferred unless it is predicted to be slower than this ratio."""


def recommend(request: CostRequest, choose: Collection[str] = CHOOSABLE) -> list[CostEstimate]:
    """Estimates that fit in memory: the recommended one, then the others, fastest first.

    The recommended one is the simplest (without offload, at the lowest stage) of those whose times differ
    from the fastest one's by no more than the model's error on that GPU, and that recompute no more than it.
    choose: names of the settings to vary; the others stay as requested. Raises a `UserError` that names the
    smallest configuration if none fits.
    """
    estimates = [estimate(candidate) for candidate in _candidates(request, choose)]
    fitting = sorted((one for one in estimates if one.fits), key=_by_time)
    if fitting:
        best = _simplest(fitting)
        return [best, *(one for one in fitting if one is not best)]
    if not estimates:
        check(request)  # raises faults that rule out every candidate
        problem = "cannot be split by any setting"
        raise UserError.of("--global-batch", problem, "choose another", request.global_batch)
    smallest = min(estimates, key=lambda one: one.needed)
    raise UserError.of(
        "--gpu",
        f"nothing fits: the smallest configuration (stage {smallest.request.zero_stage}, micro batch "
        f"{smallest.request.setup.micro_batch}) needs {smallest.needed / GIB:.1f} GiB per GPU of "
        f"{smallest.capacity / GIB:.0f}",
        "use more GPUs, larger ones, or shorter blocks",
        request.gpu,
    )


def _simplest(fitting: list[CostEstimate]) -> CostEstimate:
    """The simplest of the estimates, sorted by time, that the model cannot distinguish from the fastest."""
    fastest = fitting[0]
    limit = fastest.step.total * spread(fastest.request.gpu).error
    near = [
        one
        for one in fitting
        if one.step.total <= limit
        and one.request.checkpointing <= fastest.request.checkpointing
        and (one.request.zero_stage or one.step.total <= _STAGE_0_SLACK * fastest.step.total)
    ]
    return min(near, key=lambda one: (one.request.offload_optimizer != "none", one.request.zero_stage))


def _by_time(one: CostEstimate) -> tuple[float, int, bool, bool]:
    request = one.request
    # Times that agree to three digits are equal: the model is not more accurate than that.
    rounded = float(f"{one.step.total:.3g}")
    return rounded, request.zero_stage, request.offload_optimizer != "none", request.checkpointing


def _candidates(request: CostRequest, choose: Collection[str]) -> Iterator[CostRequest]:
    """Every combination of the settings to choose that passes `check`."""
    names = [name for name in CHOICES if name in choose]
    for values in product(*(CHOICES[name] for name in names)):
        chosen = replace(request, **dict(zip(names, values)))
        if "precision" in choose and chosen.zero_stage == 0 and chosen.precision != "fp32":
            chosen = replace(chosen, precision="autocast")  # how stage 0 computes in 16 bits
        for micro_batch in _micro_batches(request) if "micro_batch" in choose else [request.micro_batch]:
            candidate = replace(chosen, micro_batch=micro_batch)
            try:
                check(candidate)
            except UserError:
                continue
            yield candidate


def _micro_batches(request: CostRequest) -> list[int]:
    """Divisors of a rank's share of the global batch, up to 256 sequences."""
    if request.ranks < 1 or request.global_batch % request.ranks:
        return [1]
    share = request.global_batch // request.ranks
    return [size for size in range(1, min(share, 256) + 1) if share % size == 0]
