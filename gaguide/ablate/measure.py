"""The whole ablation: load each model, measure it on text and tasks, test, and make the record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gaguide.ablate.effects import Measured, head_records, together_effects
from gaguide.ablate.meter import Reading
from gaguide.ablate.methods import TASK_METHODS
from gaguide.ablate.records import AblationRecord, ModelRecord
from gaguide.ablate.request import START, Request, guided_heads
from gaguide.ablate.subjects import Key, Subject, choose_subjects, together
from gaguide.ablate.tasks import TaskMeasure, measure_tasks
from gaguide.ablate.text import TextSums, measure_text, read_attention
from gaguide.distributed import World
from gaguide.errors import Fault, UserError
from gaguide.evaluate.encode.span_marks import span_marks
from gaguide.evaluate.model_folder import ModelFolder, load_model
from gaguide.evaluate.results.results import versions
from gaguide.evaluate.runner import output_folders
from gaguide.evaluate.schedule.cost import Budget
from gaguide.evaluate.schedule.work import ModelWork, prepare_work
from gaguide.guidance.cues import BANDS
from gaguide.guidance.patterns import MarksOfIds
from gaguide.log import SlowWork, code_fingerprint, say
from gaguide.model import build_model, find_model, with_vocabulary
from gaguide.model.attention_support import causal_attention_modules
from gaguide.model.packed import isolate_documents, use_packed_attention
from gaguide.model.precision import torch_dtype
from gaguide.train.inputs import Batch, guidance_marks, model_inputs
from gaguide.train.preflight import find_corpus

_FEW_BLOCKS = 20


@dataclass
class _One:
    """What was measured of one model."""

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
    seconds: float = 0.0
    """Time that it took."""


def ablate(request: Request, world: World) -> AblationRecord:
    """Measure every model of the request, one after the other, on this process's device."""
    device = world.device
    batches = [] if request.text is None else _batches(request, device)
    works: list[ModelWork | None] = [None] * len(request.folders)
    if request.tasks:
        budget = Budget.of(request.settings.batch_tokens, device.type)
        works = list(prepare_work(list(request.tasks), request.folders, world, budget))
    found = []
    for folder, work in zip(request.folders, works, strict=True):
        found.append(_measure(request, folder, work, batches, device))
    before = _before(request, found, batches, device)
    names = [short_name(folder.name) for folder in request.folders]
    if len(set(names)) < len(names):
        names = [path.name for path in output_folders(Path(), [folder.name for folder in request.folders])]
    first = found[0].text if len(found) > 1 else None
    models = tuple(
        _model_record(
            request, one, name, None if request.before == one.folder.name else before, first if at else None
        )
        for at, (one, name) in enumerate(zip(found, names, strict=True))
    )
    return AblationRecord(
        models=_with_duplicates(models),
        settings=_settings_json(request),
        deciding=request.settings.methods[0],
        before=_before_name(request, dict(zip([one.folder.name for one in found], names, strict=True))),
        versions=versions() | {"code": code_fingerprint()},
    )


def short_name(model: str) -> str:
    """The last part of a model's name; of a run's model, the run's."""
    path = Path(model)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _batches(request: Request, device: torch.device) -> list[Batch]:
    text, size = request.text, request.settings.batch
    assert text is not None
    count = len(text.chosen)
    starts = list(range(0, count, size))
    if "resample" in request.settings.methods and len(starts) > 1 and count - starts[-1] < 2:
        starts.pop()  # no batch of a single block, which has no other to take from
    ends = [*starts[1:], count]
    return [
        Batch(
            model_inputs(text.blocks, text.chosen[start:end], text.isolate, device),
            guidance_marks(text.blocks, text.chosen[start:end], request.plan.marks, device),
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def _isolating(model: PreTrainedModel, request: Request) -> PreTrainedModel:
    """The model, which from now on keeps documents of the text apart where it was trained to."""
    if request.text is not None and request.text.isolate:
        isolate_documents(model, use_packed_attention(model), request.text.blocks.block_length)
    return model


def _measure(
    request: Request, folder: ModelFolder, work: ModelWork | None, batches: Sequence[Batch],
    device: torch.device,
) -> _One:  # fmt: skip
    started, settings = time.monotonic(), request.settings
    model = _isolating(load_model(folder, settings.dtype, device), request)
    layers = list(causal_attention_modules(model))
    shape = model.config.get_text_config()
    sizes = int(shape.num_hidden_layers), int(shape.num_attention_heads)
    guided = guided_heads(request.plan.restricted_to(layers, sizes[0]), model.config)
    subjects = choose_subjects(guided, layers, sizes[1], settings.controls, settings.seed, settings.every)
    one = _One(folder, subjects, sizes)
    name = short_name(folder.name)
    if batches:
        with SlowWork(f"{name}: removing heads, passes over text") as slow:
            inputs, marks = [batch.inputs for batch in batches], [batch.marks for batch in batches]
            one.text = measure_text(
                model, subjects, inputs, settings.methods, settings.seed, slow.done, marks
            )
        for note in one.text.notes:
            say(f"{name}: {note}")
    if work is not None:
        methods = [method for method in settings.methods if method in TASK_METHODS]
        means = {} if one.text is None else one.text.means
        with SlowWork(f"{name}: removing heads, passes over tasks") as slow:
            one.tasks = measure_tasks(
                model, work, request.tasks, subjects, methods, means, slow.done, _task_marks(request, work)
            )
    one.seconds = time.monotonic() - started
    return one


def _task_marks(request: Request, work: ModelWork) -> MarksOfIds:
    """The marks that the tasks' data give, which removing edges needs; none without it."""
    if "edges" not in request.settings.methods or not request.plan.marks:
        return {}
    return dict(span_marks(work.data, work.encoded, work.folder.tokenizer, request.plan.marks))


def _before(
    request: Request, found: Sequence[_One], batches: Sequence[Batch], device: torch.device
) -> dict[Key, Reading] | None:
    """What the heads do in the model that attention is compared with."""
    if request.before is None:
        return None
    for one in found:
        if one.folder.name == request.before:
            return None if one.text is None else dict(one.text.readings)
    if isinstance(request.before, ModelFolder):
        model = load_model(request.before, request.settings.dtype, device)
    else:
        # In the precision of the others: rounding alone moves attention by a little, in all blocks alike.
        model = _start_model(request).to(device, torch_dtype(request.settings.dtype)).eval()
    inputs, marks = [batch.inputs for batch in batches], [batch.marks for batch in batches]
    model = _isolating(model, request)
    return read_attention(model, found[0].subjects, inputs, marks)


def _start_model(request: Request) -> Any:
    """The model that the plan's run started from, weights included."""
    run = request.source.run
    assert request.before == START and run is not None
    try:
        corpus = find_corpus(run)
        source = find_model(run.model, corpus.vocab_size, corpus.eos_token_id)
        if run.model.resize_embeddings:
            source = with_vocabulary(source, corpus.vocab_size)
        return build_model(source, run.seed)
    except UserError as error:
        raise UserError(
            [
                Fault(f"--before start: {one.field}", one.problem, f"give --before MODEL; or {one.remedy}")
                for one in error.faults
            ]
        ) from None


def _model_record(
    request: Request,
    one: _One,
    name: str,
    before: dict[Key, Reading] | None,
    first: TextSums | None,
) -> ModelRecord:
    measured = Measured(one.subjects, request.settings.methods, one.text, one.tasks.effects, before, first)
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
        heads=head_records(measured, request.settings.methods[0]),
        together=together_effects(measured),
        seconds=round(one.seconds, 2),
        notes=tuple(_notes(request, one, loss)),
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


def _notes(request: Request, one: _One, loss: float | None) -> list[str]:
    """What a reader of the numbers should know."""
    notes = list(one.text.notes) if one.text is not None else []
    text = request.text
    if text is not None:
        if loss is None:
            notes.append("its held-out loss is not finite, so that no effect on it has a number")
        if len(text.chosen) < _FEW_BLOCKS:
            notes.append(f"intervals and tests are over {len(text.chosen)} blocks of text only")
        repeated = len(text.chosen) - len({row.tobytes() for row in text.blocks.read(text.chosen)})
        if repeated:
            notes.append(
                f"{repeated} of {len(text.chosen)} blocks are the same as an earlier one; each counts, so "
                "that the intervals are too narrow"
            )
    guided = [subject for subject in one.subjects if subject.role == "guided"]
    if one.text is not None:
        unseen = [
            f"layer {subject.layer} head {subject.head}"
            for subject in guided
            if not int(one.text.readings[subject.key].queries.sum())
        ]
        if unseen:
            notes.append(f"no query sees a target of {', '.join(unseen)} in this text")
        if any(reading.output_norm is None for reading in one.text.readings.values()):
            notes.append("its attention's output projection is not known, so that norms are missing")
    few = [subject for subject in guided if len(subject.controls) < request.settings.controls]
    if few:
        least = min(len(subject.controls) for subject in few)
        notes.append(f"{len(few)} heads of the plan have fewer controls than asked for, at least {least}")
    if (
        one.text is not None
        and request.settings.controls
        and "controls" not in together(one.subjects)
        and len(guided) > 1
    ):
        notes.append(
            "its layers have fewer controls than heads of the plan, so that removing all of these at once is "
            "compared with no controls"
        )
    if request.tasks and "resample" in request.settings.methods:
        notes.append("resample is measured on text only")
    return notes


def _with_duplicates(models: Sequence[ModelRecord]) -> tuple[ModelRecord, ...]:
    """The records, with a note where two models have the same content."""
    return tuple(
        replace(model, notes=(*model.notes, f"its files are the same as those of {same.name}"))
        if (same := next((other for other in models[:at] if other.identity == model.identity), None))
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
