"""A job: a run whose parts were found and fit together, as preflight passes it to training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import torch

from gaguide.checkpoint import Companions
from gaguide.config import BatchPlan, RunConfig
from gaguide.cost.flops import flops_per_token
from gaguide.data.corpus import Corpus
from gaguide.data.read.mixture import ROUND, MixedOrder
from gaguide.distributed import World
from gaguide.engine.config_resolved import DeepSpeedConfig
from gaguide.errors import UserError, mask_credentials
from gaguide.files import hash_json
from gaguide.guidance import GuidancePlan
from gaguide.guidance.cues import Cues
from gaguide.model import ModelSource, shape_of
from gaguide.model.lora import Adapter
from gaguide.train.device import device_peak_flops

_OPTIMIZER_FIELDS = {
    "learning_rate", "schedule", "warmup_steps", "weight_decay", "betas", "epsilon", "gradient_clipping",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A run whose parts were found and fit together."""

    run: RunConfig
    """The run's settings."""
    deepspeed: DeepSpeedConfig
    """The DeepSpeed JSON, completed with them."""
    batch: BatchPlan
    """How the global batch is split among ranks and micro batches."""
    corpus: Corpus
    """The training and held-out blocks."""
    model: ModelSource
    """The model's configuration, without weights."""
    plan: GuidancePlan | None
    """The guided heads; None in an unguided run."""
    total_steps: int
    """Optimizer steps of the whole run."""
    frozen: tuple[str, ...] = ()
    """Names of the parameters that are not trained."""
    adapter: Adapter | None = None
    """The adapters that are trained in place of the model; None where its own weights are."""
    trained: int | None = None
    """Number of parameters that are trained; None where all of the model are."""
    cues: Cues | None = None
    """Cues near which the held-out loss is also measured; None without any."""
    data_start: int = 0
    """Step after which the data begin at their first block: not 0 where they changed during the run."""

    @property
    def output(self) -> Path:
        """The folder of everything that the run writes."""
        return Path(self.run.output).expanduser()

    @property
    def companions(self) -> Companions:
        """Files of the run's export other than the weights."""
        model = self.model
        return Companions(model.config, self.corpus.tokenizer, model.generation, self.adapter, model.licenses)

    @property
    def added(self) -> int:
        """Parameters of adapters, in addition to the model's own."""
        return 0 if self.adapter is None else self.adapter.parameters

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all ranks."""
        return self.batch.global_batch * self.run.data.block_length

    def describe(self, world: World) -> str:
        """The job in a few lines, for the console."""
        run, batch, shape = self.run, self.batch, self.model.config.get_text_config()
        computing = f"{self.deepspeed.precision}, ZeRO {self.deepspeed.zero_stage}"
        computing += ", compiled" if run.train.compile else ""
        if run.model.trust_remote_code:
            warn(f"model.trust_remote_code: Python code from {run.model.name} is executed", stacklevel=2)
        for field, steps in (
            ("train.warmup_steps", run.train.warmup_steps),
            ("guidance.warmup_steps", run.guidance.warmup_steps),
        ):
            if steps > self.total_steps:
                warn(f"{field} = {steps}: the run ends earlier, after {self.total_steps} steps", stacklevel=2)
        weights = "random weights" if run.model.init == "scratch" else "pretrained"
        guided = "no guidance"
        if self.plan is not None:
            heads = self.plan.resolve(shape.num_hidden_layers, shape.num_attention_heads)
            patterns = ", ".join(dict.fromkeys(head.pattern.name for head in heads.values()))
            verb = f"guided, weight {self.plan.weight:g}" if self.plan.weight else "measured, not guided"
            guided = f"{self.plan.name}: {len(heads)} heads on {patterns} ({verb})"
        return (
            f"run {run.name} → {self.output}\n"
            f"  model     {run.model.name}, {shape.num_hidden_layers} layers, "
            f"{shape.num_attention_heads} heads, {weights}, {computing}\n"
            f"{self._describe_extras()}"
            f"  guidance  {guided}\n"
            f"  data      {self._describe_data()}\n"
            f"  batch     {batch.global_batch} = {batch.micro_batch} × {batch.accumulation} accumulation × "
            f"{world.size} ranks; {self.total_steps:,} steps"
        )

    def _describe_extras(self) -> str:
        extras = []
        if self.adapter is not None:
            extras.append(self.adapter.description)
        if self.trained is not None:
            extras.append(f"{self.trained:,} parameters trained")
        offload = {"optimizer": self.deepspeed.offload_optimizer, "param": self.deepspeed.offload_parameters}
        extras += [f"{part} on {place}" for part, place in offload.items() if place != "none"]
        return f"            {', '.join(extras)}\n" if extras else ""

    def utilisation(self, tokens_per_second: float, ranks: int, device: torch.device) -> float | None:
        """Model FLOPs utilisation in [0, 1] over all devices; None where peak or FLOPs are unknown."""
        peak = device_peak_flops(device, self.deepspeed.precision, self.run.train.peak_tflops)
        if peak is None:
            return None
        try:
            shape = shape_of(self.model.config, with_saved=False)
        except UserError:
            return None  # its FLOPs are not counted, e.g. those of a mixture of experts
        guided = 0
        if self.plan is not None and self.plan.weight:
            guided = len(self.plan.resolve(shape.layers, shape.heads))
        needed = flops_per_token(
            shape, self.run.data.block_length, guided_heads=guided, trained=self.trained, added=self.added
        ).model
        return tokens_per_second * needed / (peak * ranks)

    def _describe_data(self) -> str:
        corpus, length = self.corpus, self.run.data.block_length
        if not corpus.is_complete:
            assert corpus.build is not None
            request = corpus.build.request
            return (
                f"blocks of {length} tokens of {corpus.build.source.description}, tokenised during training "
                f"by {request.workers} processes into {request.output}"
            )
        parts = "".join(
            f"\n            {part['shards']}: {part['blocks']:,} blocks, {part['share']:.1%} of the batches, "
            f"{part['epochs']:.2f} epochs"
            for part in self.mixture()
        )
        return f"{len(corpus.blocks):,} blocks of {length} tokens, {len(corpus.held_out):,} held out{parts}"

    def mixture(self) -> list[dict[str, Any]]:
        """Of a mixture: its folders with their blocks, their share of what is read, and how often the run
        reads each; the epochs of the whole say nothing about a small folder with a large weight."""
        order = self.corpus.order
        if not isinstance(order, MixedOrder):
            return []
        epochs = order.epochs(self.first_block(self.total_steps + 1))
        found = zip(self.run.data.mixture, order.part_blocks, order.shares, epochs, strict=True)
        return [
            {
                "shards": mask_credentials(entry.shards),
                "blocks": sum(blocks),
                "share": share / ROUND,
                "epochs": times,
            }
            for entry, blocks, share, times in found
        ]

    def global_batch(self, step: int) -> int:
        """Index in the data order of the global batch that a step trains on, from 0."""
        return step - 1 - self.data_start

    def first_block(self, step: int) -> int:
        """The place in the data order of the first block of a step's global batch."""
        return self.global_batch(step) * self.batch.global_batch

    def epoch(self, step: int) -> float | None:
        """Epochs done after `step`; None while a source is being tokenised."""
        done = self.first_block(step + 1)
        return done / len(self.corpus.blocks) if self.corpus.is_complete else None

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that must be the same for a run to resume from a checkpoint, as plain JSON."""
        run = self.run
        guidance = run.guidance.model_dump(mode="json", exclude={"lexicons", "plan", "experiment", "method"})
        if run.guidance.loss == "squared":  # as before there was a choice
            del guidance["loss"], guidance["threshold"]
        parts = {
            "seed": run.seed,
            "data": self.corpus.fingerprint,
            "data order": self.corpus.order.fingerprint,
            "data.block_length": run.data.block_length,
            "data.isolate_documents": run.data.isolate_documents,
            "train.global_batch": run.train.global_batch,
            "number of steps": self.total_steps,
            "precision": self.deepspeed.precision,
            "patterns": self.plan.patterns() if self.plan else [],
        }
        if self.frozen:
            parts["train.freeze"] = sorted(self.frozen)
        if self.adapter is not None:
            parts |= {
                "train.lora": self.adapter.identity,
                "train.lora.dropout": self.adapter.dropout,
                "base weights": self.model.weights,
            }
        parts |= {"model": self.model.fingerprint, "model.dropout": run.model.dropout}
        parts |= {f"guidance.{name}": value for name, value in guidance.items()}
        optimizer = run.train.model_dump(mode="json", include=_OPTIMIZER_FIELDS)
        return parts | {f"train.{name}": value for name, value in optimizer.items()}

    @property
    def measure(self) -> str:
        """Identifies the held-out blocks of a loss; only losses with the same measure may be compared."""
        parts = {
            "data": self.corpus.fingerprint,
            "blocks": min(self.run.validation.blocks, len(self.corpus.held_out)),
            "block_length": self.run.data.block_length,
            "isolate_documents": self.run.data.isolate_documents,
        }
        return hash_json(parts)[:16]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `identity`, hexadecimal."""
        return hash_json(self.identity)
