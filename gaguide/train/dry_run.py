"""`gaguide train --dry-run`: a run up to the inputs of its first step."""

from __future__ import annotations

import json

import torch

from gaguide.config import dump_config
from gaguide.data import rank_micro_batches
from gaguide.distributed import World
from gaguide.errors import UserError
from gaguide.model import shape_of
from gaguide.train.device import available_memory
from gaguide.train.inputs import model_inputs
from gaguide.train.job import Job
from gaguide.train.probe import estimate


def describe_dry_run(job: Job, world: World) -> str:
    """Resolved settings, memory, data and the first step's inputs of this rank, for the console.

    Reads one micro batch of the data; no weights are read or made, and nothing is written.
    """
    return "\n".join(
        (
            "settings of the run, as resolved:",
            _indented(dump_config(job.run, masked=True)),
            "DeepSpeed JSON, as resolved:",
            _indented(json.dumps(job.deepspeed.settings, indent=2, default=str)),
            job.describe(world),
            f"  tokens    {job.tokens_per_step:,} a step, {job.total_steps * job.tokens_per_step:,} in all",
            f"  memory    {_memory(job, world)}",
            f"  step 1    {_first_inputs(job, world)}",
            "dry run: every check passed; nothing was trained or written",
        )
    )


def _memory(job: Job, world: World) -> str:
    """Estimated memory of a rank, with the parts that it is made of."""
    try:
        parameters = shape_of(job.model.config, with_saved=False).parameters
        memory = estimate(job, job.batch.micro_batch, world)
    except UserError as error:
        return f"not estimated ({error.faults[0].problem})"
    parts = {
        "weights": memory.weights + memory.master_weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "logits": memory.logits,
    }
    shown = ", ".join(f"{name} {size / 1e9:.3f} GB" for name, size in parts.items() if size)
    host = f" and {memory.host / 1e9:.2f} GB of the host" if memory.host else ""
    free = available_memory(world.device) / 1e9
    trained = "" if job.trained is None else f", of which {job.trained:,} are trained"
    return (
        f"about {memory.peak / 1e9:.3f} GB of each rank's {world.device.type}{host} by the model of "
        f"docs/scaling.md ({shown}); {free:.1f} GB are free; {parameters + job.added:,} parameters{trained}"
    )


def _first_inputs(job: Job, world: World) -> str:
    corpus = job.corpus
    if not corpus.is_complete:
        return "its inputs exist once the first shards are tokenised"
    batch = job.batch
    ids_AM = rank_micro_batches(
        corpus.order, 0, batch.global_batch, batch.micro_batch, world.rank, world.size
    )
    inputs = model_inputs(corpus.blocks, ids_AM[0], job.run.data.isolate_documents, torch.device("cpu"))
    shapes = ", ".join(f"{name} {list(value.shape)} {str(value.dtype)[6:]}" for name, value in inputs.items())
    text = corpus.tokenizer.decode(inputs["input_ids"][0, :24].tolist())
    return f"{shapes}; block {int(ids_AM[0, 0])} begins {text!r}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())
