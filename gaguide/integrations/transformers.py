"""Guidance in transformers' `Trainer` and in trainers derived from it, such as TRL's `SFTTrainer`.

    trainer = guided(Trainer)(model=model, args=args, train_dataset=data, guidance=plan)

Everything else (accumulation, mixed precision, DeepSpeed, FSDP, evaluation, checkpoints) stays the trainer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, get_args

import torch
from torch import nn
from transformers import Trainer

from gaguide.errors import Fault, FaultCollector, UserError, not_one_of
from gaguide.guidance import Guidance, GuidancePlan, guide, weight_factor
from gaguide.guidance.attach import Method
from gaguide.guidance.schedule import WeightSchedule

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


def guided(trainer: type[AnyTrainer]) -> Callable[..., AnyTrainer]:
    """A subclass of `trainer`, called with `guidance=PLAN` in addition to the arguments of `trainer`.

    Training adds the plan's weighted loss to the trainer's own; logs gain `lm_loss`, `guidance_loss` and
    `guided_attention` (as in docs/training.md, means over the global batches since the last log). Evaluation
    computes exactly the same numbers as without and gains `eval_guided_attention`. `guidance_schedule`,
    `guidance_warmup_steps` and `guidance_method` are as `schedule`, `warmup_steps` and `method` of a run's
    guidance.
    """
    made: Any = type(f"Guided{trainer.__name__}", (GuidedMixin, trainer), {"__doc__": trainer.__doc__})
    return made


class _Means:
    """Sums of what is logged, kept on the device until they are read."""

    def __init__(self) -> None:
        self.losses_2: torch.Tensor | None = None
        """[2], fp64: weighted guidance loss and number of steps, of which a micro batch is a share."""
        self.attention_2N: torch.Tensor | None = None
        """[2, N], fp64: as `Guidance.attention_sums`."""

    def add(self, guidance: Guidance, loss: torch.Tensor, micro_batches: int = 1) -> None:
        """Add the latest pass, one of `micro_batches` of its step."""
        losses_2 = torch.stack([loss.detach().double(), torch.ones_like(loss, dtype=torch.float64)])
        losses_2 = losses_2 / micro_batches
        sums_2N = guidance.attention_sums()
        self.losses_2 = losses_2 if self.losses_2 is None else self.losses_2 + losses_2
        self.attention_2N = sums_2N if self.attention_2N is None else self.attention_2N + sums_2N

    def read(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, float | None] | None:
        """Mean loss and attention over all ranks, attention None where no query saw a target.

        None without a pass.
        """
        if self.losses_2 is None or self.attention_2N is None:
            return None
        sums = reduce(torch.cat([self.losses_2, self.attention_2N.flatten()]))
        loss, steps = sums[:2].tolist()
        masses, queries = sums[2:].chunk(2)
        seen = queries > 0
        attention = float((masses[seen] / queries[seen]).mean()) if bool(seen.any()) else None
        return loss / steps, attention


class GuidedMixin(Trainer):
    """Base class that `guided` puts in front of a trainer's class."""

    def __init__(
        self,
        *args: Any,
        guidance: GuidancePlan,
        guidance_schedule: WeightSchedule = "constant",
        guidance_warmup_steps: int = 0,
        guidance_method: Method = "auto",
        **kwargs: Any,
    ) -> None:
        _check_schedule(guidance_schedule, guidance_warmup_steps)
        super().__init__(*args, **kwargs)
        self.guidance_method: Method = guidance_method
        self.guidance_plan = guidance
        self.guidance_schedule: WeightSchedule = guidance_schedule
        self.guidance_warmup_steps = guidance_warmup_steps
        self._guidance: Guidance | None = None
        self._trained, self._evaluated = _Means(), _Means()
        if self.args.n_gpu > 1:
            raise UserError(_one_process_per_gpu(self.args.n_gpu))
        if self.model is not None:
            with guide(self.model, guidance, method=guidance_method):
                pass  # a plan that does not fit is reported before training

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the trainer does, with guidance.

        Not `train`, which may make another model before it calls this (`model_init`).
        """
        self._trained = _Means()
        with self._opened():
            return super()._inner_training_loop(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the trainer does; adds the attention of the guided heads to the metrics."""
        self._evaluated = _Means()
        with self._opened(measure_only=True) as guidance, guidance.measuring():
            output: Any = super().evaluation_loop(*args, **kwargs)
        numbers = self._evaluated.read(self._sum_over_ranks)
        if numbers is not None and numbers[1] is not None:
            prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
            output.metrics[f"{prefix}_guided_attention"] = numbers[1]
        return output

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as the trainer does, and measure attention."""
        found = super().prediction_step(*args, **kwargs)
        if self._guidance is not None:
            self._evaluated.add(self._guidance, self._guidance.loss())
        return found

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The trainer's loss, in training plus the guidance loss."""
        found: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        guidance = self._guidance
        if guidance is None or guidance.measure_only or not model.training:
            return found
        guidance.weight = self.guidance_plan.weight * weight_factor(
            self.guidance_schedule,
            self.guidance_warmup_steps,
            self.state.global_step + 1,
            self.state.max_steps,
        )
        added = guidance.loss()
        if not added.requires_grad:
            raise UserError(_second_pass(type(self).__name__))
        self._trained.add(guidance, added, self.current_gradient_accumulation_steps)
        loss, outputs = found if return_outputs else (found, None)
        if self._is_scaled(num_items_in_batch):  # the trainer will not divide by accumulation steps
            added = added / self.current_gradient_accumulation_steps
        loss = loss + added.to(loss)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the trainer does; adds the numbers of guidance to those of a training loss."""
        if "loss" in logs and (numbers := self._trained.read(self._sum_over_ranks)) is not None:
            loss, attention = numbers
            logs |= {"lm_loss": logs["loss"] - loss, "guidance_loss": loss}
            if attention is not None:
                logs["guided_attention"] = attention
            self._trained = _Means()
        super().log(logs, *args, **kwargs)

    @contextmanager
    def _opened(self, measure_only: bool = False) -> Iterator[Guidance]:
        """The guidance of `self.model`, opened unless an outer call has done so."""
        if self._guidance is not None:
            yield self._guidance
            return
        model: Any = self.model
        plan, method = self.guidance_plan, self.guidance_method
        with guide(model, plan, measure_only=measure_only, method=method) as self._guidance:
            try:
                yield self._guidance
            finally:
                self._guidance = None

    def _sum_over_ranks(self, sums: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(sums.to(self.args.device), "sum").cpu()

    def _is_scaled(self, num_items_in_batch: torch.Tensor | int | None) -> bool:
        """Whether the trainer takes the loss as normalised over the accumulated batch, by its own rule."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is not None:
            return bool(scaled)
        by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return by_model or self.compute_loss_func is not None


def _check_schedule(schedule: str, warmup_steps: int) -> None:
    """Raise a `UserError` for a schedule or a warmup that does not exist."""
    with FaultCollector() as faults:
        if schedule not in (known := get_args(WeightSchedule)):
            faults.add(not_one_of("guidance_schedule", schedule, known))
        if warmup_steps < 0:
            problem, remedy = "must be at least 0", "give the number of warmup steps"
            faults.add(Fault("guidance_warmup_steps", problem, remedy, warmup_steps))


def _one_process_per_gpu(gpus: int) -> Fault:
    return Fault(
        "args",
        f"the trainer would copy the model to {gpus} GPUs in one process (DataParallel)",
        "start one process per GPU (torchrun --nproc_per_node N …), or set CUDA_VISIBLE_DEVICES to one",
    )


def _second_pass(trainer: str) -> Fault:
    return Fault(
        "guidance",
        f"{trainer}'s last forward pass before the loss was computed recorded no gradient",
        "leave out the option that adds a pass of its own for metrics (compute_loss_func and "
        "label_smoothing_factor in SFTTrainer)",
    )
