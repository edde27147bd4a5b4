"""`evaluate_model`: the evaluation of a model that is in memory, which leaves the model as it was."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gaguide.distributed import World, raise_together
from gaguide.errors import Fault, FaultCollector, UserError, reworded
from gaguide.evaluate.encode.identity import encoding_key
from gaguide.evaluate.model_folder import DTYPES, ModelFolder, tokenizer_faults
from gaguide.evaluate.results.earlier import lock_outputs
from gaguide.evaluate.results.results import Results
from gaguide.evaluate.results.task_results import make_task_results
from gaguide.evaluate.results.write import write_results
from gaguide.evaluate.runner import EvaluateSettings, read_on_main, settings_json, token_counts
from gaguide.evaluate.schedule.cost import Budget
from gaguide.evaluate.schedule.work import prepare_work
from gaguide.evaluate.score.ranks import agree_on_sharing, score_all
from gaguide.evaluate.score.saved_scores import SavedScores
from gaguide.evaluate.score.scorer import Scorer, Sharing, make_sums_reproducible
from gaguide.evaluate.tasks.locate import split_names
from gaguide.evaluate.tasks.read import TaskData, read_tasks
from gaguide.files import hash_json
from gaguide.log import run_files, say
from gaguide.model.attention_hooks import consumers_of, suspend_observers
from gaguide.model.attention_support import unwrap_model
from gaguide.model.fast import fused_activations

_OPTION = re.compile(r"--([a-z][a-z-]*)")


def evaluate_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Path | Sequence[str | Path],
    settings: EvaluateSettings | None = None,
    *,
    output: str | Path | None = None,
    name: str | None = None,
) -> Results:
    """The results of a causal language model of transformers on `tasks`, as from `gaguide evaluate`.

    model: on any device, possibly wrapped (torch.compile, DDP, Fabric, PEFT). It is evaluated in its own
    precision, in eval mode and without autocast. Open interventions act; open guidance and recordings neither
    act nor see the passes. Afterwards mode, hooks, activations and random numbers are as before.
    tasks: names, groups and files as after --tasks. settings: None means `EvaluateSettings` with the model's
    dtype; another dtype, or a DeepSpeed JSON, is refused.
    output: an empty or new folder that receives the files of the command. name: the model's name in the
    results, by default its class.

    In a process group every rank must call it with the same weights; ranks share the examples, and each gets
    the results. On a CPU the numbers are those of the saved folder to the last bit, if the model's attention
    is SDPA and MKL sums alike: export MKL_CBWR=AUTO,STRICT if matrices were multiplied before the first call.

    Raises `UserError` with every fault, on all ranks, before the first example is scored.
    """
    started = time.monotonic()
    make_sums_reproducible()
    world = _world()
    output = None if output is None else Path(output).expanduser()
    with reworded(_in_words_of_python), ExitStack() as stack:
        inner, settings = raise_together(lambda: _check(model, tokenizer, settings, output))
        names = split_names([str(one) for one in ([tasks] if isinstance(tasks, str | Path) else tasks)])
        folder = MemoryModel(name or type(inner).__name__, inner.config, tokenizer, inner)
        data = read_on_main(
            world,
            lambda: read_tasks(
                names, settings.data, settings.limit, folder.positions, settings.shots, settings.options
            ),
        )
        read_on_main(world, lambda: _refuse_generation(folder, data))
        for warning in (text for task in data for text in task.warnings if world.is_main):
            say(f"warning: {warning}")
        budget = Budget.of(settings.batch_tokens, inner.device.type)
        multiturn = settings.options.fewshot_as_multiturn
        (work,) = prepare_work(data, [folder], world, budget, settings.on_overflow, multiturn)
        read_on_main(world, lambda: stack.enter_context(_claimed(output)) and None)
        read = time.monotonic()
        saved = SavedScores(None, "", work.batches, world)
        with _undisturbed(inner):
            scorer = Scorer(inner, inner.device)
            if folder.needs_whole_passes:
                scorer.sharing = Sharing.NOTHING
            else:
                agree_on_sharing(scorer, work.batches, world)
            score_all(scorer, work.batches, range(len(work.batches)), saved, world)
            identity = folder.identity
        scored = time.monotonic()
        results = Results(
            model=folder.name,
            tasks=make_task_results(work.data, work.encoded, saved.all_scores(), folder),
            settings=settings_json(settings, inner.device, bool(scorer.sharing)) | {"held_share": None},
            world_size=world.size,
            seconds={
                "read": read - started, "load": 0.0, "score": scored - read, "total": scored - started,
            },
            tokens=token_counts(work.encoded, work.batches),
            identity=identity,
        )  # fmt: skip
        if world.is_main and output is not None:
            write_results(results, output)
        for warning in (text for task in results.tasks.values() for text in task.warnings()):
            if world.is_main:
                say(f"warning: {warning}")
        return results


@dataclass(frozen=True)
class MemoryModel(ModelFolder):
    """A model in memory, under the interface of a model's folder."""

    model: PreTrainedModel
    """The model inside all wrappers."""

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a text, also those of the generation configuration in memory."""
        generation = getattr(self.model, "generation_config", None)
        return self._flat_ids(getattr(generation, "eos_token_id", None))

    @property
    def needs_whole_passes(self) -> bool:
        """Whether sequences are computed separately, each by a call of the whole model.

        An intervention may act on keys that a cached prefix hides; a hook on the model itself would not run.
        """
        ours = 2 if consumers_of(self.model) else 0  # before and after a pass, see attention_hooks.py
        hooks = len(self.model._forward_pre_hooks) + len(self.model._forward_hooks)
        return bool(self._interventions) or hooks > ours

    @property
    def identity(self) -> dict[str, Any]:
        """Plain JSON that changes with weights, configuration, tokenizer, and heads that are intervened on.

        Of interventions it has kind and heads. A folder's identity differs: there files are hashed.
        """
        weights = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        config = {key: value for key, value in self.config.to_dict().items() if key != "_name_or_path"}
        found = {
            "weights": weights.hexdigest(),
            "config": hash_json(config, default=str),
            "tokenizer": encoding_key(self.tokenizer),
        }
        return found | ({"interventions": self._interventions} if self._interventions else {})

    @property
    def _interventions(self) -> list[str]:
        return [str(consumer) for consumer in consumers_of(self.model) if consumer.changes_outputs]


def _check(
    model: nn.Module, tokenizer: Any, settings: EvaluateSettings | None, output: Path | None
) -> tuple[PreTrainedModel, EvaluateSettings]:
    """The model inside `model` and the settings; raises `UserError` with every fault of the arguments."""
    with FaultCollector() as faults:
        inner = faults.attempt(unwrap_model, model)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            problem = f"must be a tokenizer of transformers, but is a {type(tokenizer).__name__}"
            faults.add(Fault("tokenizer", problem, "pass AutoTokenizer.from_pretrained(...)"))
        elif inner is not None:
            faults.add(*tokenizer_faults(tokenizer, inner.config, "tokenizer"))
        if inner is not None:
            faults.add(*_model_faults(model, inner))
            of_model = next((name for name, dtype in DTYPES.items() if dtype == inner.dtype), None)
            if of_model is None:
                remedy = "convert it, for example with model.float()"
                faults.add(Fault("model", f"must be in {', '.join(DTYPES)}", remedy, str(inner.dtype)))
            settings = settings or EvaluateSettings(dtype=of_model or "fp32")
            if of_model is not None and settings.dtype in DTYPES and settings.dtype != of_model:
                problem = f"the model in memory is in {of_model} and is not converted"
                remedy = f"give EvaluateSettings(dtype={of_model!r}, ...), or convert the model first"
                faults.add(Fault("dtype", problem, remedy, settings.dtype))
        if settings is not None:
            faults.attempt(settings.check)
            if settings.deepspeed is not None:
                remedy = "save the model and use gaguide evaluate --deepspeed"
                faults.add(Fault("deepspeed", "cannot partition a model that is in memory", remedy))
        if output is not None and (output / run_files.RESULTS).exists():
            faults.add(Fault("output", "holds results already", "give a new folder", str(output)))
    assert inner is not None and settings is not None
    return inner, settings


def _model_faults(model: nn.Module, inner: PreTrainedModel) -> Iterator[Fault]:
    """Faults of a model that cannot be called here."""
    save = "save the model and use gaguide evaluate"
    if inner.config.is_encoder_decoder or inner.get_output_embeddings() is None:
        problem = f"{type(inner).__name__} is not a causal language model"
        yield Fault("model", problem, "load it with AutoModelForCausalLM")
    if any(
        getattr(getattr(one, "active_peft_config", None), "is_prompt_learning", False)
        for one in model.modules()
    ):
        problem = "its adapter puts learned tokens before the prompt, which the evaluator does not see"
        yield Fault("model", problem, "use an adapter that changes layers, such as LoRA")
    shards = "FullyShardedDataParallel"
    partitioned = any(isinstance(one, DTensor) or hasattr(one, "ds_id") for one in inner.parameters())
    if partitioned or any(type(one).__name__ == shards for one in model.modules()):
        yield Fault("model", "its parameters are partitioned among ranks (FSDP, ZeRO-3)", save)
    elif any(one.is_meta for one in inner.parameters()):
        yield Fault("model", "some of its parameters have no values (device meta)", "load its weights")


def _refuse_generation(folder: MemoryModel, data: Sequence[TaskData]) -> None:
    """Raise `UserError` for tasks that generate texts, where only whole passes of the model are possible."""
    if not folder.needs_whole_passes:
        return
    problem = (
        "generates text with cached keys, which interventions and hooks on the model itself do not support"
    )
    remedy = "leave the task out, or evaluate it without them"
    with FaultCollector() as faults:
        for task in data:
            if task.kind == "numeric":
                faults.add(Fault(f"task {task.task.name}", problem, remedy))


@contextmanager
def _claimed(output: Path | None) -> Iterator[bool]:
    """Inside, no other evaluation may write into `output`."""
    with lock_outputs([] if output is None else [output]):
        if output is not None and (output / run_files.RESULTS).exists():
            raise UserError.of("output", "holds results already", "give a new folder", str(output))
        yield True


@contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model computes as one that was loaded from its folder; afterwards it is as before."""
    training = [(module, module.training) for module in model.modules()]
    with (
        suspend_observers(model),
        fused_activations(model),
        torch.autocast(model.device.type, enabled=False),
        torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []),
    ):
        try:
            model.eval()
            yield
        finally:
            for module, was_training in training:
                module.training = was_training


def _in_words_of_python(fault: Fault) -> Fault:
    """The fault with the arguments of `evaluate_model` in place of the command's options."""
    field, problem, remedy = (
        _OPTION.sub(lambda match: match[1].replace("-", "_"), text)
        for text in (fault.field, fault.problem, fault.remedy)
    )
    return replace(fault, field=field, problem=problem, remedy=remedy)


def _world() -> World:
    """This process in the process group that training has started, alone without one."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    local_rank = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    return World(dist.get_rank(), dist.get_world_size(), local_rank)
