"""What guidance costs, counted instead of timed, held against a table: a change of it is a decision.

Counted on a CPU in one training step: operations that reach the dispatcher, profiled kernels, autograd nodes,
allocations, reads by the host (on a GPU each waits for the device), and launches of the Triton kernels. Those
do nothing here, so that what remains is what the host does around them on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from gaguide.guidance import Assignment, GuidancePlan, TokenSet, backend, guide
from gaguide.guidance.attach import Method
from gaguide.model import tap
from gaguide.model.packed import use_packed_attention
from tests.support.models import random_ids

WORDS = TokenSet("words", frozenset({5, 9, 17, 33}))
LENGTH = 40  # one block of rows


@dataclass(frozen=True)
class Cost:
    """Counts of one training step."""

    operations: int
    kernels: int
    autograd_nodes: int
    allocations: int
    host_reads: int
    triton_launches: int

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(mine - theirs for mine, theirs in zip(astuple(self), astuple(other))))


class Operations(TorchDispatchMode):
    """Counts what reaches the dispatcher, below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(function)] += 1
        return function(*args, **kwargs or {})


# Views and metadata, which start no kernel.
VIEWS = {
    "aten::" + name
    for name in (
        "view", "_unsafe_view", "transpose", "t", "slice", "select", "expand", "unsqueeze", "squeeze",
        "alias", "as_strided", "split", "split_with_sizes", "detach", "unbind", "narrow", "diagonal",
        "permute", "reshape", "_reshape_alias", "empty", "empty_strided", "empty_like", "resize_",
        "lift_fresh", "item", "result_type", "is_nonzero", "new_empty", "numpy_T", "set_",
        "unflatten", "flatten", "chunk",
    )
}  # fmt: skip


def model_of(layers: int) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=64, n_positions=64, n_embd=32, n_layer=layers, n_head=4, attn_pdrop=0.0, embd_pdrop=0.0,
        resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    model.loss_type = "ForCausalLM"
    packed = use_packed_attention(model)
    assert packed is not None
    packed.learn(LENGTH)
    return model


def nodes_of(loss: torch.Tensor) -> int:
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


def cost_of(
    layers: int,
    guided: tuple[int, ...],
    loss: str = "squared",
    method: Method = "joint",
    kernel: str = "row blocks",
) -> Cost:
    """Of a step of a model with so many layers, of which some are guided."""
    launches: Counter[str] = Counter()
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        if kernel != "row blocks":
            pytest.importorskip("triton", reason="needs triton (extra: test)")
            count_launches(patch, launches)
            patch.setattr(backend, "is_fused", lambda *_: True)
        patch.setattr(tap, "SMALL", 2**22 if kernel == "triton, small" else 0)
        model, ids = model_of(layers), random_ids(2, LENGTH)
        guidance = None
        if guided:
            plan = GuidancePlan((Assignment(WORDS, (0, 1), guided),), loss=loss)
            guidance = stack.enter_context(guide(model, plan, method=method))

        def step() -> torch.Tensor:
            total = model(input_ids=ids, labels=ids, use_cache=False).loss
            if guidance is not None:
                total = total + guidance.loss()
            total.backward()
            return total

        nodes = nodes_of(step())  # the first step may fill caches
        launches.clear()
        with Operations() as operations:
            step()
        launched = sum(launches.values())
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            step()
    leaves = [e for e in profiled.events() if e.name.startswith("aten::") and not e.cpu_children]
    events = profiled.profiler.kineto_results.events()
    allocations = sum(e.name() == "[memory]" and e.nbytes() > 0 for e in events)
    return Cost(
        sum(operations.names.values()),
        sum(event.name not in VIEWS for event in leaves),
        nodes,
        allocations,
        operations.names["aten._local_scalar_dense.default"],
        launched,
    )


def count_launches(patch: pytest.MonkeyPatch, launches: Counter[str]) -> None:
    from gaguide.guidance import triton_kernels

    class Counted:
        """Stands for a kernel that fills its outputs, which nothing here looks at."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
            def launch(*_: Any, **__: Any) -> None:
                launches[self.name] += 1

            return launch

    for name in ("forward", "backward_queries", "backward_keys"):
        patch.setattr(triton_kernels, name, Counted(name))


TABLE = {
    # operations, kernels, autograd nodes, allocations, reads by the host, Triton launches
    ("squared", "joint", "row blocks"): Cost(184, 95, 4, 69, 0, 0),
    ("log-mass", "joint", "row blocks"): Cost(168, 88, 4, 63, 0, 0),
    ("squared", "joint", "triton"): Cost(48, 13, 4, 16, 0, 3),
    ("log-mass", "joint", "triton"): Cost(48, 13, 4, 16, 0, 3),
    ("squared", "tap", "row blocks"): Cost(130, 72, 2, 54, 0, 0),
    ("squared", "tap", "triton"): Cost(10, 2, 1, 0, 0, 0),
    ("log-mass", "tap", "triton"): Cost(10, 2, 1, 0, 0, 0),
    ("squared", "tap", "triton, small"): Cost(4, 2, 0, 2, 0, 0),
}
"""What a guided layer adds to an unguided one, which has 109 operations and 79 kernels (torch 2.13)."""
TOGETHER = {"triton": Cost(55, 30, 7, 51, 0, 3), "triton, small": Cost(71, 34, 7, 51, 0, 3)}
"""What all tapped layers add once a step with the Triton kernels: row terms, and three launches."""


@pytest.mark.parametrize(("loss", "method", "kernel"), TABLE)
def test_a_guided_layer_adds_what_the_table_says(loss: str, method: Method, kernel: str) -> None:
    """Measured between models with two and three guided layers, so that what a step costs once drops out."""
    added = cost_of(3, (0, 1, 2), loss, method, kernel) - cost_of(3, (0, 1), loss, method, kernel)
    assert added == TABLE[loss, method, kernel]


@pytest.mark.parametrize("kernel", TOGETHER)
def test_what_tapped_layers_cost_together(kernel: str) -> None:
    three = cost_of(3, (0, 1, 2), method="tap", kernel=kernel)
    added = three - cost_of(3, ())
    for _ in range(3):
        added -= TABLE["squared", "tap", kernel]
    assert added == TOGETHER[kernel]


def test_an_unguided_layer_does_exactly_what_the_model_alone_does() -> None:
    assert cost_of(3, (0,)) - cost_of(2, (0,)) == cost_of(3, ()) - cost_of(2, ())
