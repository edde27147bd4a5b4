"""The engine: a model in training, its optimizer and its saved state, with DeepSpeed behind it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from gaguide.distributed import World
from gaguide.engine import monitors, nonfinite, offload_state, reshard
from gaguide.engine.compiled import CompileCost, CompiledForward
from gaguide.engine.config_resolved import DeepSpeedConfig
from gaguide.engine.heap import trim_heap
from gaguide.engine.layout import StateLayout, state_layout
from gaguide.engine.save import STATE_TAG, SaveResult
from gaguide.model.packed import PackedAttention, isolate_documents

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class StepOutcome:
    """The effect of an optimizer step; the same on every rank."""

    grad_norm: torch.Tensor | float | None
    """2-norm of the whole gradient before clipping, on the device if it was not read; None where it was not
    requested or there are no parameters."""
    dropped: bool
    """True if the gradient was not finite and the weights stayed as they were."""


class Engine:
    """Trains a model over all ranks; made by `gaguide.engine.build.build_engine`.

    An optimizer step is `config.accumulation` times `lm_loss` and `backward`, then `step`. All ranks must
    make the same calls, except those for monitors, which are rank 0's.
    """

    def __init__(
        self,
        engine: DeepSpeedEngine,
        config: DeepSpeedConfig,
        world: World,
        packed: PackedAttention | None = None,
        compiled: CompiledForward | None = None,
        trained_only: bool = False,
    ) -> None:
        """trained_only: whether `save` leaves out the parameters that are not trained."""
        self._engine, self._packed, self._compiled = engine, packed, compiled
        self._parameters = tuple(engine.module.parameters())  # walking the modules takes milliseconds
        self.config = config
        """The resolved DeepSpeed JSON."""
        self.world = world
        """This rank among all of them."""
        self.layout: StateLayout = state_layout(engine, config, trained_only)
        """Layout of the files of `save`, apart from the number of ranks."""

    @property
    def module(self) -> PreTrainedModel:
        """The model; under ZeRO-3 its parameters are partitioned between forward passes."""
        module: PreTrainedModel = self._engine.module
        return module

    @property
    def device(self) -> torch.device:
        """The device that this rank computes on."""
        device: torch.device = self._engine.device
        return device

    @property
    def skipped_steps(self) -> int:
        """Steps dropped since the run began; part of the saved state."""
        return int(self._engine.skipped_steps)

    @property
    def compile_cost(self) -> CompileCost | None:
        """Cost of compiling the model since the start of this process; None if it is not compiled."""
        return None if self._compiled is None else self._compiled.cost

    def isolate_documents(self, length: int) -> None:
        """Keep attention inside the documents of blocks of `length` tokens, from now on; a collective."""
        with self.autocast():
            isolate_documents(self.module, self._packed, length)

    def lm_loss(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean next-token cross-entropy of a micro batch, with its graph; 0-dimensional.

        `inputs` are keyword arguments of the model's forward pass, `input_ids` [M, T] among them. Labels
        [M, T] of -100 do not count; with `num_items_in_batch` the loss is the sum over the other tokens
        divided by that number.
        """
        if self._compiled is not None:
            self._compiled.prepare(inputs)
        loss: torch.Tensor = self._engine(**{"labels": inputs["input_ids"], **inputs}, use_cache=False).loss
        return loss

    def backward(self, loss: torch.Tensor) -> None:
        """Add a micro batch's gradients to those of the step, each weighted by 1 / accumulation."""
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only advances DeepSpeed's count of micro batches

    def step(self, learning_rate: float, with_norm: bool = True) -> StepOutcome:
        """Clip the accumulated gradients and update the weights.

        `with_norm`: return the gradient norm. Raises `RuntimeError` before the last micro batch's `backward`.
        """
        engine = self._engine
        if not engine.is_gradient_accumulation_boundary():
            raise RuntimeError("step() before backward() of the last micro batch")
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        skipped_before = engine.skipped_steps
        norm = nonfinite.clip_at_stage_0(engine, self._parameters)
        if engine.zero_use_cpu_optimizer():
            trim_heap()  # the optimizer's state moves into host memory, where backward left holes
        engine.step()
        if with_norm and norm is None:
            norm = engine.get_global_grad_norm()
        return StepOutcome(norm if with_norm else None, engine.skipped_steps > skipped_before)

    def autocast(self) -> AbstractContextManager[None]:
        """Inside, direct calls of `module` compute in the precision of training."""
        from deepspeed.runtime.torch_autocast import autocast_if_enabled

        context: AbstractContextManager[None] = autocast_if_enabled(self._engine)
        return context

    def save(self, folder: Path) -> SaveResult:
        """Write this rank's state below `folder`; never raises a disk error, see `SaveResult`."""
        from gaguide.engine.checkpoint_writer import write_state

        result = write_state(self._engine, folder, bool(self.layout.get("trained_only")))
        written = result.attempt(
            offload_state.save_swapped, self._engine, folder / STATE_TAG, self.world.rank
        )
        result.files += written or []
        return result

    def load(self, folder: Path, world_size: int, layout: StateLayout) -> None:
        """Load the state of `world_size` ranks below `folder`, saved in `layout`; another one is resharded.

        The folder must be verified first, as its files are unpickled. Raises a `UserError` where a state on
        NVMe would have to be resharded.
        """
        state = folder / STATE_TAG
        # DeepSpeed restores these as well, but the run's settings decide.
        names = ("weight_decay", "betas", "eps")
        settings = [
            {name: group[name] for name in names if name in group}
            for group in self._engine.optimizer.param_groups
        ]
        if (world_size, layout) == (self.world.size, self.layout):
            loading = {"custom_load_fn": _load_trained} if self.layout.get("trained_only") else {}
            loaded, _ = self._engine.load_checkpoint(str(folder), STATE_TAG, **loading)
            if loaded is None:
                raise RuntimeError(f"DeepSpeed found nothing to load in {folder}")
        else:
            reshard.load_resharded(self._engine, state, int(layout["zero_stage"]))
        offload_state.restore_offloaded(self._engine, state, self.world.rank)
        for group, own in zip(self._engine.optimizer.param_groups, settings, strict=True):
            group.update(own)

    def reset_counters(self) -> None:
        """Count steps and dropped steps from 0, for a new run that starts with a loaded state."""
        for name in ("global_steps", "global_samples", "micro_steps", "skipped_steps"):
            setattr(self._engine, name, 0)

    def resume_monitors(self, samples: int) -> None:
        """Continue the monitors' files after `samples` sequences; call it once, on rank 0, before writing."""
        monitors.resume_monitors(self._engine, samples)

    def write_monitors(self, record: Mapping[str, object], samples: int) -> None:
        """Write a step's numbers to the monitors; `samples` is the number of sequences seen."""
        monitors.write_monitors(self._engine, record, samples)

    def close(self) -> None:
        """Free the engine's memory and hooks; it cannot be used afterwards."""
        if self._compiled is not None:
            self._compiled.close()
        self._engine.destroy()


def _load_trained(src: Mapping[str, torch.Tensor], dst: PreTrainedModel) -> None:
    """Load the trained parameters `src` into the module `dst`, and nothing else; called by DeepSpeed."""
    trained = {name for name, parameter in dst.named_parameters() if parameter.requires_grad}
    if differing := sorted(trained ^ src.keys()):
        raise RuntimeError(f"the checkpoint does not fit the model: {', '.join(differing)}")
    dst.load_state_dict(src, strict=False)
