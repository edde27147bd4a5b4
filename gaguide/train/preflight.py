"""Preflight: everything a run needs, found and checked before the first step, all faults at once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gaguide.config import BatchPlan, GuidanceSection, RunConfig, SourceSection, plan_batch
from gaguide.data import BuildRequest, load_tokenizer, steps_for_epochs, tokenizer_fingerprint
from gaguide.data.build.demo_corpus import embedded_corpus
from gaguide.data.read.corpus import Corpus, folder_corpus, mixture_corpus, source_corpus
from gaguide.distributed import World
from gaguide.engine.config import Precisions, RunSide, load_deepspeed_json, resolve_deepspeed
from gaguide.engine.monitors import check_monitors
from gaguide.engine.offload_state import offload_is_ready
from gaguide.errors import Fault, UserError
from gaguide.guidance import Assignment, FixedOffset, GuidancePlan, make_pattern, read_lexicons
from gaguide.model import ModelSource, find_model, skeleton
from gaguide.model.attention_hooks import attention_modules
from gaguide.model.freeze import check_guidance_moves, frozen_parameters
from gaguide.train.job import Job

T = TypeVar("T")


def prepare(run: RunConfig, deepspeed_json: Path, world: World) -> Job:
    """The job of `run` in `world`. Raises one `UserError` with every fault that could be found."""
    check = _Collector()
    output = check(lambda: _writable(Path(run.output).expanduser()))
    ds_file = check(lambda: load_deepspeed_json(deepspeed_json))
    batch = check(lambda: plan_batch(run.train.global_batch, run.train.micro_batch, world.size))
    corpus = check(lambda: _corpus(run))
    model = plan = bare = None
    if corpus is not None:
        data = corpus
        model = check(lambda: find_model(run.model, data.vocab_size, data.eos_token_id))
        plan = check(lambda: _plan(run, data.tokenizer))
    if model is not None:
        found = model
        check(lambda: _model_takes_data(found, data, run))
        bare = check(lambda: skeleton(found))
    deepspeed = None
    if ds_file is not None and batch is not None:
        file, split = ds_file, batch
        deepspeed = check(lambda: complete_json(file, split, run, model))
    if deepspeed is not None:
        resolved, parameters = deepspeed, bare.num_parameters() if bare is not None else 0
        check(lambda: check_monitors(resolved, world))
        check(lambda: offload_is_ready(resolved, parameters, world))
    if model is not None and bare is not None and plan is not None:
        shape, guided, architecture = model.config.get_text_config(), plan, bare
        check(lambda: attention_modules(architecture))
        check(lambda: guided.resolve(shape.num_hidden_layers, shape.num_attention_heads))
        check(lambda: _offsets_fit(guided, run.data.block_length))
    frozen: tuple[str, ...] | None = ()
    if bare is not None and run.train.freeze:
        frozen = check(partial(_frozen, bare, run, plan))
    check(lambda: _best_is_measured(run))
    check.raise_faults()
    assert batch and corpus and model and deepspeed and output
    total = run.train.steps or steps_for_epochs(
        len(corpus.blocks), run.train.epochs or 1, run.train.global_batch
    )
    return Job(run, deepspeed, batch, corpus, model, plan, total, frozen or ())


def complete_json(
    file: dict[str, Any], batch: BatchPlan, run: RunConfig, model: ModelSource | None
) -> dict[str, Any]:
    """DeepSpeed's JSON with what the run owns; `model` None where it was not found."""
    width = getattr(model.config.get_text_config(), "hidden_size", None) if model else None
    side = RunSide(run.train.gradient_clipping, Path(run.output).expanduser(), run.name, width)
    return resolve_deepspeed(file, batch, side, _precisions())


class _Collector:
    """Runs checks, keeps the faults of those that fail."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def __call__(self, check: Callable[[], T]) -> T | None:
        try:
            return check()
        except UserError as error:
            self.faults += error.faults
            return None

    def raise_faults(self) -> None:
        if self.faults:
            raise UserError(self.faults)


def _corpus(run: RunConfig) -> Corpus:
    data, seed = run.data, run.seed
    cache_bytes = int(data.cache_gb * 1e9)
    if data.mixture:
        parts = [(entry.shards, entry.weight) for entry in data.mixture]
        return mixture_corpus(parts, data.block_length, seed, cache_bytes)
    if data.source is not None:
        return source_corpus(_build_request(run, data.source), data.block_length, seed, run.validation.blocks)
    folder = _embedded() if data.shards == "embedded" else str(data.shards)
    return folder_corpus(folder, data.block_length, seed, cache_bytes)


def _build_request(run: RunConfig, source: SourceSection) -> BuildRequest:
    if run.train.steps is None:
        problem = "epochs of a source are not known before it is tokenised"
        raise UserError(Fault("train.epochs", problem, "give train.steps, or build shards first"))
    return BuildRequest(
        sources=source.files,
        output=Path(run.data.shards or Path(run.output) / "data").expanduser(),
        tokenizer=source.tokenizer or run.model.name,
        rows=source.rows,
        split=source.split,
        text_field=source.text_field,
        validation_fraction=source.validation_fraction,
        shard_tokens=source.shard_tokens,
        workers=source.workers,
        revision=source.revision,
    )


def _embedded() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        return embedded_corpus(cache / "gaguide" / "embedded")
    except OSError as error:
        problem = f"the embedded corpus cannot be built in {cache} ({error.strerror})"
        raise UserError(
            Fault("data.shards", problem, "set XDG_CACHE_HOME to a folder you can write to")
        ) from None


def _best_is_measured(run: RunConfig) -> None:
    """Keeping the best needs checkpoints at whose step the held-out loss is measured."""
    if not run.checkpoint.keep_best:
        return
    both = math.lcm(run.validation.every, run.checkpoint.every)  # 0 where either is
    if both == 0 or (run.train.steps is not None and both >= run.train.steps):
        raise UserError(
            Fault(
                "checkpoint.keep_best",
                "no validation before the last step falls on a checkpoint "
                f"(validation.every {run.validation.every}, checkpoint.every {run.checkpoint.every})",
                "let one of them be a multiple of the other, and smaller than the number of steps",
                run.checkpoint.keep_best,
            )
        )


def _writable(output: Path) -> Path:
    try:
        if output.exists() and not output.is_dir():
            raise UserError(Fault("output", "is a file", "name a folder", str(output)))
        output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        problem = f"cannot be made ({getattr(error, 'strerror', None) or error})"
        raise UserError(Fault("output", problem, "name another folder", str(output))) from None
    if not os.access(output, os.W_OK):
        raise UserError(Fault("output", "cannot be written to", "name another folder", str(output)))
    return output


def _precisions() -> Precisions:
    from deepspeed.accelerator import get_accelerator

    device = get_accelerator()
    auto_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return Precisions(auto_bf16, bool(device.is_bf16_supported()), bool(device.is_fp16_supported()))


def _plan(run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> GuidancePlan | None:
    section = run.guidance
    if section.plan:
        return _custom_plan(section, tokenizer)
    plan = GuidancePlan.from_experiment(
        section.experiment,
        tokenizer,
        mode=section.mode,
        layers=section.layers,
        reduction=section.reduction,
        target=section.target,
        weight=section.weight,
    )
    return None if plan.is_empty else plan


def _frozen(bare: PreTrainedModel, run: RunConfig, plan: GuidancePlan | None) -> tuple[str, ...]:
    frozen = frozen_parameters(bare, run.train.freeze)
    if plan is not None and plan.weight:
        shape = bare.config.get_text_config()
        heads = plan.resolve(shape.num_hidden_layers, shape.num_attention_heads)
        check_guidance_moves(bare, frozen, max(layer for layer, _ in heads))
    return frozen


def _offsets_fit(plan: GuidancePlan, block_length: int) -> None:
    for assignment in plan.assignments:
        pattern = assignment.pattern
        if isinstance(pattern, FixedOffset) and pattern.distance >= block_length:
            raise UserError(
                Fault(
                    "guidance.plan",
                    f"{pattern.name} never has a target in blocks of {block_length} tokens",
                    "use a smaller offset or longer blocks",
                )
            )


def _custom_plan(section: GuidanceSection, tokenizer: PreTrainedTokenizerBase) -> GuidancePlan:
    own = read_lexicons(Path(section.lexicons)) if section.lexicons else {}
    check = _Collector()
    assignments = []
    for at, entry in enumerate(section.plan):
        field = f"guidance.plan.{at}.pattern"
        pattern = check(partial(make_pattern, entry.pattern, tokenizer, section.mode, own, field))
        if pattern is not None:
            assignments.append(Assignment(pattern, entry.heads, entry.layers, entry.weight))
    check.raise_faults()
    return GuidancePlan(tuple(assignments), section.reduction, section.target, section.weight)


def _model_takes_data(model: ModelSource, corpus: Corpus, run: RunConfig) -> None:
    """Raise the faults between model and shards."""
    faults = []
    positions, length = model.positions, run.data.block_length
    if positions is not None and length > positions:
        faults.append(
            Fault(
                "data.block_length",
                f"the model has {positions} positions",
                f"use at most {positions}",
                length,
            )
        )
    vocabulary = model.config.get_text_config().vocab_size
    if corpus.vocab_size > vocabulary:
        faults.append(
            Fault(
                "data.shards",
                f"were made with a vocabulary of {corpus.vocab_size} entries, the model has {vocabulary}",
                f"build them with the model's tokenizer: gaguide data build --tokenizer {run.model.name} …",
                run.data.shards,
            )
        )
    elif run.model.init == "pretrained":
        faults += _tokenizer_faults(corpus, run)
    if faults:
        raise UserError(faults)


def _tokenizer_faults(corpus: Corpus, run: RunConfig) -> list[Fault]:
    """A pretrained model must have been trained with the tokenizer that made the shards."""
    try:
        theirs = tokenizer_fingerprint(load_tokenizer(run.model.name))
    except UserError:
        return []  # a folder without a tokenizer: the vocabulary's size is all there is to compare
    if theirs == corpus.tokenizer_fingerprint:
        return []
    return [
        Fault(
            "data.shards",
            f"were made with another tokenizer than that of {run.model.name}",
            f"build them with the model's tokenizer: gaguide data build --tokenizer {run.model.name} …",
            run.data.shards,
        )
    ]
