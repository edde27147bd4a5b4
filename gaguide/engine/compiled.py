"""`train.compile`: torch.compile of the model's forward pass in training, and the cost of compiling.

It compiles `module.forward` with its backward: DeepSpeed's own `engine.compile` would trace its timers. Of a
pass with labels the graph returns the loss alone: backward would add a gradient of zeros to the logits, as
large as they are. Passes without gradients (validation, evaluation) run as they are written: their batches
come in many shapes, each of which would be compiled again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from gaguide.distributed import raise_together
from gaguide.errors import Fault, UserError
from gaguide.model.packed import MASKLESS, PackedAttention

CompileMode = bool | Literal["max-autotune"]
"""`train.compile`."""
_REMEDY = "set train.compile: false"
_ONCE = "skip_fwd_side_effects_in_bwd_under_checkpoint"


@dataclass(frozen=True)
class CompileCost:
    """Cost of compiling in this process since its start."""

    seconds: float
    """Wall-clock seconds, part of the steps in which they were spent."""
    graphs: int
    """Graphs compiled: one, unless the model's Python code breaks it."""
    recompilations: int
    """Graphs among them that replaced one which no longer fitted."""


class CompiledForward:
    """A model whose training passes run compiled, and return the loss alone where there are labels.

    Its object must live as long as the model.
    """

    def __init__(self, model: PreTrainedModel, mode: CompileMode, packed: PackedAttention | None) -> None:
        use_local_caches()
        torch.compiler.reset()  # graphs of a model before this one would count as replaced
        self._packed = packed
        if packed is not None:
            packed.compiled = True
        self._graphs: set[str] = set()
        self._seconds = self._began = 0.0
        self._has_run = False
        # Without CUDA graphs: docs/training.md gives the reasons.
        name = "max-autotune-no-cudagraphs" if mode == "max-autotune" else None
        self._eager = model.forward
        self._compiled = _compile(_loss_alone(self._eager), mode=name)
        self._count(True)

        @wraps(self._eager)
        def _forward(*args: Any, **kwargs: Any) -> Any:
            if not (model.training and torch.is_grad_enabled()):
                return self._eager(*args, **kwargs)
            if self._has_run:
                return self._compiled(*args, **kwargs)
            self._has_run = True
            return raise_together(lambda: self._first(*args, **kwargs))

        model.forward = _forward

    @property
    def cost(self) -> CompileCost:
        """Cost of compiling so far."""
        again = sum(not graph.split("/")[-1].startswith("0") for graph in self._graphs)
        return CompileCost(self._seconds, len(self._graphs), again)

    def prepare(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Before a compiled pass: determine by an uncompiled one whether it needs masks."""
        packed, length = self._packed, inputs["input_ids"].shape[1]
        if packed is not None and inputs.keys() <= MASKLESS and length not in packed.maskless:
            packed.learn(length)

    def close(self) -> None:
        """Stop counting."""
        self._count(False)

    def _first(self, *args: Any, **kwargs: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._compiled(*args, **kwargs)
        except TorchDynamoException as error:
            reason = " ".join(
                str(error).split("\n")[:2]
            )  # the first line names the backend, the second the cause
            problem = f"torch cannot compile the model here ({reason})"
            raise UserError.of("train.compile", problem, _REMEDY) from error

    def _count(self, wanted: bool) -> None:
        from torch._dynamo.callback import callback_handler as handler

        if wanted:
            handler.register_start_callback(self._begin)
            handler.register_end_callback(self._end)
        else:
            with suppress(ValueError):  # `torch.compiler.reset` forgets them
                handler.remove_start_callback(self._begin)
                handler.remove_end_callback(self._end)

    def _begin(self, event: Any) -> None:
        self._began = time.perf_counter()
        self._graphs.add(str(event.compile_id))

    def _end(self, _: Any) -> None:
        self._seconds += time.perf_counter() - self._began


def compile_forward(
    model: PreTrainedModel, mode: str | None = None, backend: str = "inductor", fullgraph: bool = False
) -> Callable[..., object]:
    """`torch.compile` of the model's forward pass, in one graph also where it is guided and checkpointed."""
    return _compile(model.forward, mode=mode, backend=backend, fullgraph=fullgraph)


def _loss_alone(forward: Callable[..., Any]) -> Callable[..., Any]:
    def _trained(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return output if output.loss is None else type(output)(loss=output.loss)

    # Torch keeps graphs by code object: of a shared one, every call would try those of other models too.
    _trained.__code__ = _trained.__code__.replace()
    return wraps(forward)(_trained)


def _compile(forward: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(forward, dynamic=False, **options)
    settings: Any = torch._dynamo.config
    if not hasattr(settings, _ONCE):  # an older torch breaks the graph there
        return compiled
    # A guided layer records its loss, which torch otherwise refuses in a layer that backward recomputes.
    once: Callable[..., Any] = settings.patch({_ONCE: True})(compiled)
    return once


def compile_faults(mode: CompileMode, zero_stage: int, on_gpu: bool) -> list[Fault]:
    """Why a run cannot be compiled; empty where it can, or is not to be compiled."""
    if mode is False:
        return []
    found = []
    if zero_stage == 3:
        problem = "at ZeRO stage 3 DeepSpeed gathers weights in hooks, which break the graph at every module"
        found.append((problem, "use stage 0, 1 or 2"))
    if on_gpu and find_spec("triton") is None:
        found.append(("needs Triton on a GPU", "pip install triton"))
    compiler = os.environ.get("CXX", "g++")
    if not on_gpu and shutil.which(compiler) is None:
        found.append((f"needs a C++ compiler ({compiler} was not found)", "install one or name it in CXX"))
    return [Fault("train.compile", problem, f"{remedy}, or {_REMEDY}", mode) for problem, remedy in found]


def use_local_caches() -> None:
    """Keep compiled graphs and kernels on this host's own disk, where a resumed run finds them.

    Folders that the environment names stay. Triton's own choice is the home folder, often of a network.
    """
    place = Path(tempfile.gettempdir()) / f"gaguide-compiled-{os.getuid()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(place / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(place / "triton"))
