"""Preflight: everything that a run needs is found and checked before its first step, all faults at once."""

from __future__ import annotations

import hashlib
import inspect
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from gaguide.checkpoint import MODEL_FOLDER
from gaguide.checkpoint.folder import CheckpointInfo, choose
from gaguide.config import BatchPlan, RunConfig, plan_batch
from gaguide.data import load_tokenizer, steps_for_epochs, tokenizer_fingerprint
from gaguide.data.corpus import Corpus
from gaguide.data.read.blocks import leaves_out
from gaguide.distributed import World
from gaguide.engine.compiled import compile_faults
from gaguide.engine.config import RunValues, device_precisions, load_deepspeed_json, resolve_deepspeed
from gaguide.engine.config_resolved import DeepSpeedConfig, JsonObject
from gaguide.engine.monitors import check_monitors
from gaguide.engine.offload_state import check_offload
from gaguide.errors import Fault, FaultCollector, UserError
from gaguide.files import output_folder
from gaguide.log import say
from gaguide.model import ModelSource, find_model, saved_model, skeleton, with_vocabulary
from gaguide.model.content import ADAPTER_CONFIG
from gaguide.model.quantize import check_quantizes
from gaguide.train.attention import attention_faults
from gaguide.train.guided_heads import find_cues, fit_plan, make_plan
from gaguide.train.inputs import missing_marks
from gaguide.train.job import Job
from gaguide.train.output import check_replaces_nothing
from gaguide.train.resume import find_origin, parse_origin, read_manifest
from gaguide.train.text import find_corpus
from gaguide.train.trained import TrainedPart, find_trained, partition_faults


def prepare(run: RunConfig, deepspeed_json: Path, world: World, *, create_output: bool = True) -> Job:
    """The job of `run` in `world`. Raises one `UserError` with every fault found.

    Creates the output folder unless `create_output` is false.
    """
    with FaultCollector() as faults:
        attempt = faults.attempt
        attempt(_find_output, run.output, create_output)
        settings = attempt(load_deepspeed_json, deepspeed_json)
        batch = attempt(plan_batch, run.train.global_batch, run.train.micro_batch, world.size)
        corpus = attempt(find_corpus, run)
        model = plan = architecture = deepspeed = cues = None
        if corpus is not None:
            model = attempt(_find_model, run, corpus)
            plan = attempt(make_plan, run.guidance, corpus.tokenizer)
            cues = attempt(find_cues, run.validation, corpus.tokenizer)
        if model is not None and corpus is not None:
            attempt(_check_model_takes_data, model, corpus, run)
            architecture = attempt(skeleton, model)
        if settings is not None and batch is not None:
            deepspeed = attempt(complete_json, settings, batch, run, model)
        if deepspeed is not None:
            attempt(check_monitors, deepspeed, world)
            on_gpu = world.device.type == "cuda"
            faults.add(*compile_faults(run.train.compile, deepspeed.zero_stage, on_gpu))
            faults.add(*attention_faults(run, model, deepspeed.precision, on_gpu))
            parameters = architecture.num_parameters() if architecture is not None else 0
            attempt(check_offload, deepspeed, parameters, world)
        if model is not None and architecture is not None and plan is not None:
            plan = fit_plan(plan, model, architecture, run.data.block_length, faults)
            faults.add(*(missing_marks(corpus.blocks, plan.marks) if corpus is not None else ()))
        if corpus is not None and architecture is not None:
            attempt(_check_loss_counts, architecture, corpus)
        trained = TrainedPart()
        if architecture is not None and model is not None:
            trained = find_trained(architecture, model, run, plan, faults)
        if trained.adapter is not None and trained.adapter.quantized:
            attempt(check_quantizes, world.device)
            faults.add(*(partition_faults(deepspeed) if deepspeed is not None else ()))
    assert batch and corpus and model and deepspeed
    total = run.train.steps or steps_for_epochs(
        len(corpus.blocks), run.train.epochs or 1, run.train.global_batch
    )
    return Job(
        run=run,
        deepspeed=deepspeed,
        batch=batch,
        corpus=corpus,
        model=model,
        plan=plan,
        total_steps=total,
        frozen=trained.frozen,
        adapter=trained.adapter,
        trained=trained.parameters,
        cues=cues,
    )


def complete_json(
    settings: JsonObject, batch: BatchPlan, run: RunConfig, model: ModelSource | None
) -> DeepSpeedConfig:
    """The DeepSpeed JSON completed with the run's values; `model` is None where it was not found."""
    width = getattr(model.config.get_text_config(), "hidden_size", None) if model else None
    values = RunValues(run.train.gradient_clipping, Path(run.output).expanduser(), run.name, width)
    return resolve_deepspeed(settings, batch, values, device_precisions())


def _find_model(run: RunConfig, corpus: Corpus) -> ModelSource:
    """The run's model; if it cannot be found but a checkpoint holds its weights, the checkpoint's."""
    start = None
    try:
        start = find_origin(run.init_from, "init_from") if run.init_from else None
        if start is not None and (start.path / MODEL_FOLDER / ADAPTER_CONFIG).is_file():
            problem, remedy = "holds adapters without their base", "give RUN/model of that run as model.name"
            raise UserError.of("init_from", problem, remedy, run.init_from)
        model = find_model(run.model, corpus.vocab_size, corpus.eos_token_id)
        if run.model.resize_embeddings:
            model = with_vocabulary(model, corpus.vocab_size)
    except UserError as error:
        saved = start or _earlier_checkpoint(run)
        if saved is None or run.train.lora is not None:  # a checkpoint of adapters lacks their base
            raise
        fingerprint = str(read_manifest(saved.path).identity.get("model"))
        problem = error.faults[0].problem
        say(f"model.name {run.model.name}: {problem}; {saved.path} holds its weights")
        model = saved_model(run.model, saved.path / MODEL_FOLDER, saved.path, fingerprint)
    if start is None:
        return model
    files = json.dumps(read_manifest(start.path).files, sort_keys=True)
    digest = hashlib.sha256(f"{files} {run.init_optimizer}".encode()).hexdigest()
    return replace(model, checkpoint=start.path, fingerprint=digest)


def _earlier_checkpoint(run: RunConfig) -> CheckpointInfo | None:
    """The checkpoint that the run will resume from, if there is one."""
    elsewhere = parse_origin(run.resume_from) if run.resume_from else None
    folders = [(Path(run.output), "latest")]
    if elsewhere is not None and elsewhere.run is not None:
        folders.append((elsewhere.run, elsewhere.step))
    for folder, step in folders:
        with suppress(UserError):
            return choose(folder, step)
    return None


def _find_output(given: str, create: bool) -> None:
    output = output_folder(given, "output")
    check_replaces_nothing(output)
    try:
        if create:
            output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        problem = f"cannot be created ({getattr(error, 'strerror', None) or error})"
        raise UserError.of("output", problem, "choose another folder", str(output)) from None


def _check_loss_counts(architecture: PreTrainedModel, corpus: Corpus) -> None:
    """Raise a `UserError` where the loss must leave tokens out and the model cannot average over the rest."""
    parameters = inspect.signature(architecture.forward).parameters.values()
    takes = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    if leaves_out(corpus.blocks) and not getattr(architecture, "accepts_loss_kwargs", takes):
        problem = (
            "its forward pass does not accept num_items_in_batch, by which answers are averaged over a batch"
        )
        remedy = "use shards without conversations or masked words, or another model"
        raise UserError.of("model.name", problem, remedy, type(architecture).__name__)


def _check_model_takes_data(model: ModelSource, corpus: Corpus, run: RunConfig) -> None:
    """Raise a `UserError` where model and shards do not fit together."""
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
                f"build them with the model's tokenizer: gaguide data build --tokenizer {run.model.name} …; "
                "or, if theirs is the model's with added tokens, set model.resize_embeddings: true",
                run.data.shards,
            )
        )
    elif run.model.init == "pretrained":
        faults += _tokenizer_faults(corpus, run)
    if faults:
        raise UserError(faults)


def _tokenizer_faults(corpus: Corpus, run: RunConfig) -> list[Fault]:
    """Faults of a pretrained model with a tokenizer other than the one that made the shards."""
    try:
        tokenizer = load_tokenizer(run.model.name)
    except UserError:
        return []  # a folder without a tokenizer: only the vocabulary's size can be compared
    if not corpus.tokenizer.chat_template:
        corpus.tokenizer.chat_template = tokenizer.chat_template  # for the export
    if tokenizer_fingerprint(tokenizer) == corpus.tokenizer_fingerprint:
        return []
    extended = tokenizer.get_vocab().items() <= corpus.tokenizer.get_vocab().items()
    if extended and run.model.resize_embeddings:
        return []
    remedy = f"build them with the model's tokenizer: gaguide data build --tokenizer {run.model.name} …"
    if extended:
        remedy = f"it has added tokens: set model.resize_embeddings: true; or {remedy}"
    return [
        Fault(
            "data.shards",
            f"were made with a tokenizer other than that of {run.model.name}",
            remedy,
            run.data.shards,
        )
    ]
