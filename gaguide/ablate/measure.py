"""The whole ablation: load each model, measure it on text and tasks, test, and make the record."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gaguide.ablate.effects import MeasuredModel, head_records, together_effects
from gaguide.ablate.meter import Reading
from gaguide.ablate.methods import TASK_METHODS
from gaguide.ablate.notes import model_notes
from gaguide.ablate.records import AblationRecord, ModelRecord
from gaguide.ablate.request import START, Request, guided_heads
from gaguide.ablate.span_effects import span_records
from gaguide.ablate.spans import SpanSums, TaskSpans, find_spans, read_spans
from gaguide.ablate.subjects import Key, Subject, choose_subjects
from gaguide.ablate.tasks import TaskMeasure, measure_tasks
from gaguide.ablate.text import TextSums, measure_text, read_attention
from gaguide.distributed import World
from gaguide.errors import Fault, reworded
from gaguide.evaluate.encode.span_marks import span_marks
from gaguide.evaluate.model_folder import ModelFolder, load_model, short_name
from gaguide.evaluate.results.results import versions
from gaguide.evaluate.runner import output_folders
from gaguide.evaluate.schedule.cost import Budget
from gaguide.evaluate.schedule.work import ModelWork, prepare_work
from gaguide.evaluate.score.logits import MAX_LOGIT_POSITIONS
from gaguide.guidance.cues import BANDS
from gaguide.guidance.patterns import MarksOfIds
from gaguide.log import SlowWork, code_fingerprint, say
from gaguide.model import build_model, find_model, with_vocabulary
from gaguide.model.attention_support import causal_attention_modules
from gaguide.model.content import same_content
from gaguide.model.packed import isolate_documents, use_packed_attention
from gaguide.model.precision import torch_dtype
from gaguide.train.inputs import Batch, guidance_marks, model_inputs
from gaguide.train.text import find_corpus


@dataclass
class _One:
    """Measurements of one model."""

    folder: ModelFolder
    """The model."""
    subjects: list[Subject]
    """Its heads that were removed."""
    shape: tuple[int, int]
    """Layers, heads in each."""
    text: TextSums | None = None
    """On held-out text."""
    tasks: TaskMeasure = field(default_factory=lambda: TaskMeasure({}, {}))
    """On tasks."""
    spans: Sequence[SpanSums] = ()
    """Attention of its heads on the tasks' own spans."""
    seconds: float = 0.0
    """Duration of the measurement."""


@dataclass(frozen=True)
class _Tasks:
    """The tasks with one model's prompts."""

    work: ModelWork
    """Tokens and batches."""
    marks: MarksOfIds
    """Marks from the data, for removing edges; none without it."""
    spans: Sequence[TaskSpans]
    """Spans on which attention is measured."""
    notes: Sequence[str]
    """Tasks on whose spans attention is not measured."""


@dataclass(frozen=True)
class _Before:
    """The heads' readings in the model that attention is compared with."""

    name: str | None = None
    """The model, where it is one of those that are ablated: it is not compared with itself."""
    readings: Mapping[Key, Reading] | None = None
    """On text; None without text or such a model."""
    spans: Sequence[SpanSums] | None = None
    """On the tasks' spans; None without such a model."""


def ablate(request: Request, world: World) -> AblationRecord:
    """Measure every model of the request, one after the other, on this process's device."""
    device = world.device
    batches = [] if request.text is None else _batches(request, device)
    asked, other = _tasks(request, world)
    before = _other_before(request, batches, other, device)
    found = [
        _measure(request, folder, tasks, batches, device)
        for folder, tasks in zip(request.folders, asked, strict=True)
    ]
    for one in found:
        if one.folder.name == request.before:
            readings = None if one.text is None else one.text.readings
            before = _Before(one.folder.name, readings, one.spans)
    names = [short_name(folder.name) for folder in request.folders]
    if len(set(names)) < len(names):
        names = [path.name for path in output_folders(Path(), [folder.name for folder in request.folders])]
    first = found[0].text if len(found) > 1 else None
    models = tuple(
        _model_record(request, one, name, before, first if at else None, tasks)
        for at, (one, name, tasks) in enumerate(zip(found, names, asked, strict=True))
    )
    return AblationRecord(
        models=_with_duplicates(models),
        settings=_settings_json(request),
        deciding=request.settings.methods[0],
        before=_before_name(request, dict(zip([one.folder.name for one in found], names, strict=True))),
        versions=versions() | {"code": code_fingerprint()},
    )


def _batches(request: Request, device: torch.device) -> list[Batch]:
    text, size = request.text, request.settings.batch
    assert text is not None
    count = len(text.chosen)
    starts = list(range(0, count, size))
    if "resample" in request.settings.methods and len(starts) > 1 and count - starts[-1] < 2:
        starts.pop()  # no batch of a single block, which has no other block to resample from
    ends = [*starts[1:], count]
    return [
        Batch(
            model_inputs(text.blocks, text.chosen[start:end], text.isolate, device),
            guidance_marks(text.blocks, text.chosen[start:end], request.plan.marks, device),
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def _isolating(model: PreTrainedModel, request: Request) -> PreTrainedModel:
    """The model, which from now on isolates documents of the text if it was trained to."""
    if request.text is not None and request.text.isolate:
        isolate_documents(model, use_packed_attention(model), request.text.blocks.block_length)
    return model


def _tasks(request: Request, world: World) -> tuple[list[_Tasks | None], _Tasks | None]:
    """Each model's tasks with its own prompts, and those of the model that attention is compared with."""
    if not request.tasks:
        return [None] * len(request.folders), None
    has_spans = any(task.task.spans for task in request.tasks)
    others = [request.before] if has_spans and isinstance(request.before, ModelFolder) else []
    budget = Budget.of(request.settings.batch_tokens, world.device.type)
    works = prepare_work(list(request.tasks), [*request.folders, *others], world, budget)
    names = request.plan.marks if "edges" in request.settings.methods else ()
    found: dict[int, tuple[MarksOfIds, Sequence[TaskSpans], Sequence[str]]] = {}
    for work in works:
        if id(work.encoded) not in found:
            given = work.data, work.encoded, work.folder.tokenizer
            found[id(work.encoded)] = span_marks(*given, names) if names else {}, *find_spans(*given)
    asked = [_Tasks(work, *found[id(work.encoded)]) for work in works]
    # A run's starting model has the tokenizer and positions of the trained one.
    return list(asked[: len(request.folders)]), asked[-1] if others else asked[0]


def _subjects(request: Request, model: PreTrainedModel) -> list[Subject]:
    layers, shape = list(causal_attention_modules(model)), model.config.get_text_config()
    guided = guided_heads(request.plan.restricted_to(layers, int(shape.num_hidden_layers)), model.config)
    settings = request.settings
    return choose_subjects(
        guided, layers, int(shape.num_attention_heads), settings.controls, settings.seed, settings.every
    )


def _measure(
    request: Request, folder: ModelFolder, tasks: _Tasks | None, batches: Sequence[Batch],
    device: torch.device,
) -> _One:  # fmt: skip
    started, settings = time.monotonic(), request.settings
    model = _isolating(load_model(folder, settings.dtype, device), request)
    shape, subjects = model.config.get_text_config(), _subjects(request, model)
    one = _One(folder, subjects, (int(shape.num_hidden_layers), int(shape.num_attention_heads)))
    name = short_name(folder.name)
    if batches:
        with SlowWork(f"{name}: removing heads, passes over text") as slow:
            inputs, marks = [batch.inputs for batch in batches], [batch.marks for batch in batches]
            one.text = measure_text(
                model, subjects, inputs, settings.methods, settings.seed, slow.done, marks
            )
        for note in one.text.notes:
            say(f"{name}: {note}")
    if tasks is not None:
        one.spans = _read_spans(request, model, subjects, tasks)
        methods = [method for method in settings.methods if method in TASK_METHODS]
        means = {} if one.text is None else one.text.means
        with SlowWork(f"{name}: removing heads, passes over tasks") as slow:
            one.tasks = measure_tasks(
                model, tasks.work, request.tasks, subjects, methods, means, slow.done, tasks.marks
            )
    one.seconds = time.monotonic() - started
    return one


def _read_spans(
    request: Request, model: PreTrainedModel, subjects: Sequence[Subject], tasks: _Tasks
) -> list[SpanSums]:
    return read_spans(model, subjects, tasks.spans, request.settings.batch_tokens or MAX_LOGIT_POSITIONS)


def _other_before(
    request: Request, batches: Sequence[Batch], tasks: _Tasks | None, device: torch.device
) -> _Before:
    """The heads' readings in the model that attention is compared with, unless that is itself ablated."""
    if request.before is None or request.before in [folder.name for folder in request.folders]:
        return _Before()
    if isinstance(request.before, ModelFolder):
        model = load_model(request.before, request.settings.dtype, device)
    else:
        # In the precision of the others: rounding alone moves attention by a little, in all blocks alike.
        model = _start_model(request).to(device, torch_dtype(request.settings.dtype)).eval()
    model = _isolating(model, request)
    subjects = _subjects(request, model)
    readings = None
    if batches:
        inputs, marks = [batch.inputs for batch in batches], [batch.marks for batch in batches]
        readings = read_attention(model, subjects, inputs, marks)
    return _Before(None, readings, None if tasks is None else _read_spans(request, model, subjects, tasks))


def _start_model(request: Request) -> Any:
    """The model that the plan's run started from, weights included."""
    run = request.source.run
    assert request.before == START and run is not None

    def of_option(fault: Fault) -> Fault:
        remedy = f"give --before MODEL; or {fault.remedy}"
        return Fault(f"--before start: {fault.field}", fault.problem, remedy)

    with reworded(of_option):
        corpus = find_corpus(run)
        source = find_model(run.model, corpus.vocab_size, corpus.eos_token_id)
        if run.model.resize_embeddings:
            source = with_vocabulary(source, corpus.vocab_size)
        return build_model(source, run.seed)


def _model_record(
    request: Request, one: _One, name: str, before: _Before, first: TextSums | None, tasks: _Tasks | None
) -> ModelRecord:
    if before.name == one.folder.name:
        before = _Before()
    measured = MeasuredModel(
        one.subjects, request.settings.methods, one.text, one.tasks.effects, before.readings, first
    )
    spans = span_records(one.subjects, one.spans, before.spans)
    loss, band_loss, tokens = _losses(one)
    return ModelRecord(
        model=one.folder.name,
        name=name,
        identity=one.folder.identity,
        layers=one.shape[0],
        heads_per_layer=one.shape[1],
        loss=loss,
        band_loss=band_loss,
        band_tokens=tokens,
        tasks=one.tasks.values,
        heads=tuple(
            replace(head, spans=spans[head.layer, head.head])
            for head in head_records(measured, request.settings.methods[0])
        ),
        together=together_effects(measured),
        seconds=round(one.seconds, 2),
        notes=(*model_notes(request, one.subjects, one.text, loss), *(() if tasks is None else tasks.notes)),
    )


def _losses(one: _One) -> tuple[float | None, dict[str, float | None], dict[str, int]]:
    """Loss, loss by band of the first guided head's pattern, and tokens of each band."""
    if one.text is None:
        return None, {}, {}
    pattern = id(next(subject.pattern for subject in one.subjects if subject.role == "guided"))
    loss_K, tokens_K = one.text.loss[pattern].sum(0), one.text.tokens[pattern].sum(0)
    bands = {
        name: float(loss / tokens) if tokens and np.isfinite(loss) else None
        for name, loss, tokens in zip(BANDS, loss_K, tokens_K, strict=True)
    }
    whole = float(loss_K.sum() / tokens_K.sum())
    counts = {name: int(tokens) for name, tokens in zip(BANDS, tokens_K, strict=True)}
    return whole if np.isfinite(whole) else None, bands, counts


def _with_duplicates(models: Sequence[ModelRecord]) -> tuple[ModelRecord, ...]:
    """The records, with a note where two models have the same content."""
    return tuple(
        replace(model, notes=(*model.notes, f"its files are the same as those of {same.name}"))
        if (same := next((one for one in models[:at] if same_content(one.identity, model.identity)), None))
        else model
        for at, model in enumerate(models)
    )


def _before_name(request: Request, names: dict[str, str]) -> str | None:
    before = request.before
    if isinstance(before, ModelFolder):
        return short_name(before.name)
    return None if before is None else names.get(before, before)


def _settings_json(request: Request) -> dict[str, Any]:
    text = request.text
    values = asdict(request.settings) | {
        "data": None if request.settings.data is None else str(request.settings.data),
        "tasks": list(request.settings.tasks),
        "methods": list(request.settings.methods),
    }
    values |= {
        "plan": request.source.name,
        "patterns": request.plan.patterns(),
        "task_data": {task.task.name: task.sha256 for task in request.tasks},
    }
    if text is not None:
        values |= {
            "text": text.source,
            "text_fingerprint": text.fingerprint,
            "blocks": len(text.chosen),
            "block_length": text.blocks.block_length,
            "isolate_documents": text.isolate,
        }
    return values
