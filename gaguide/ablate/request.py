"""The request of an ablation, read and checked before any weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gaguide.ablate.methods import METHODS, TASK_METHODS
from gaguide.ablate.plan_source import PlanSource, find_plan
from gaguide.config.data import EMBEDDED_SHARDS
from gaguide.data import BlockStore, tokenizer_fingerprint
from gaguide.data.read.blocks import Blocks
from gaguide.errors import Fault, FaultCollector, UserError, not_one_of, reworded
from gaguide.evaluate.model_folder import DTYPES, ModelFolder, find_model_folder, model_path
from gaguide.evaluate.tasks.read import TaskData, read_tasks
from gaguide.guidance import GuidancePlan
from gaguide.train.guided_heads import make_plan
from gaguide.train.text import embedded_corpus, find_corpus

START = "start"
"""Value of `--before` for the starting model of the plan's run."""
_DEFAULT_LENGTH = 1024


@dataclass(frozen=True)
class AblateSettings:
    """How to ablate."""

    text: str | None = None
    """Folder or address of shards, or `embedded`; None: the held-out text of the plan's run, unless there are
    tasks."""
    blocks: int = 64
    """Held-out blocks, spread evenly over the split."""
    block_length: int | None = None
    """Tokens of a block; None: as the plan's run, else the model's positions, at most 1,024."""
    batch: int = 8
    """Blocks of a pass."""
    tasks: tuple[str, ...] = ()
    """Tasks, as in `gaguide evaluate`."""
    data: Path | None = None
    """Folder with the data files of named tasks."""
    limit: int | None = None
    """Only the first examples of each task."""
    batch_tokens: int | None = None
    """Limit of a batch of tasks in padded tokens; None chooses by device."""
    methods: tuple[str, ...] = ("mean", "zero")
    """Ways of removing a head; verdicts rest on the first."""
    controls: int = 3
    """Random unguided heads of the same layer for each guided head."""
    every: bool = False
    """Remove all other heads of the model too."""
    before: str | None = None
    """Model that attention is compared with, or `start`; None: the first of several models, else `start`
    where the plan is that of a run."""
    dtype: str = "fp32"
    """Precision of the models: fp32, bf16 or fp16."""
    seed: int = 0
    """Seed of the choice of controls and of resampling."""

    def check(self) -> None:
        """Raise `UserError` with every value that is out of range."""
        with FaultCollector() as faults:
            for name, least in (("blocks", 1), ("batch", 1), ("block_length", 2), ("limit", 1),
                                ("batch_tokens", 1), ("controls", 0)):  # fmt: skip
                value = getattr(self, name)
                if value is not None and value < least:
                    problem = f"must be at least {least}"
                    faults.add(Fault(f"--{name.replace('_', '-')}", problem, "give a larger number", value))
            if self.dtype not in DTYPES:
                faults.add(not_one_of("--dtype", self.dtype, DTYPES))
            faults.add(*(not_one_of("--methods", one, METHODS) for one in self.methods if one not in METHODS))
            if len(set(self.methods)) < len(self.methods):
                faults.add(Fault("--methods", "names one twice", "name each once", ",".join(self.methods)))
            if self.data is not None and not self.data.is_dir():
                remedy = "give the folder of the data files"
                faults.add(Fault("--data", "does not exist or is not a folder", remedy, str(self.data)))


@dataclass(frozen=True)
class Text:
    """Held-out blocks."""

    blocks: Blocks
    """Source of the blocks."""
    chosen: np.ndarray
    """Indices of the blocks [N]."""
    isolate: bool
    """Whether attention stays inside a document."""
    tokenizer: str
    """Fingerprint of their tokenizer."""
    fingerprint: str
    """Identifies the data."""
    source: str
    """Description of their source."""


@dataclass(frozen=True)
class Request:
    """An ablation, checked."""

    folders: tuple[ModelFolder, ...]
    """The models."""
    plan: GuidancePlan
    """The guided heads, by the first model's tokenizer, which all models share."""
    source: PlanSource
    """Where the plan is from."""
    text: Text | None
    """Held-out blocks; None without."""
    tasks: tuple[TaskData, ...]
    """Tasks; empty without."""
    before: ModelFolder | str | None
    """The model that attention is compared with: another one, the name of the first, `start`, or none."""
    settings: AblateSettings
    """The settings, as given."""


def read_request(models: Sequence[str], plan: str | None, settings: AblateSettings) -> Request:
    """Read and check everything but weights. Raises one `UserError` with every fault."""
    with FaultCollector() as faults:
        faults.attempt(settings.check)
        found = [faults.attempt(find_model_folder, model_path(name)) for name in models]
        for name in sorted({name for name in models if models.count(name) > 1}):
            faults.add(Fault("--model", "is given twice", "give each model once", name))
        source = faults.attempt(find_plan, models, plan)
    folders = tuple(folder for folder in found if folder is not None)
    assert source is not None
    with FaultCollector() as faults:
        resolved = faults.attempt(make_plan, source.section, folders[0].tokenizer)
        if resolved is None and not faults:
            problem, remedy = "guides no head", "give an experiment or a plan that does"
            faults.add(Fault("--plan", problem, remedy, source.name))
        if resolved is not None:
            for folder in folders:
                faults.attempt(guided_heads, resolved, folder.config)
        faults.add(*_alike(folders))
        text = faults.attempt(find_text, source, folders, settings)
        tasks = (
            faults.attempt(
                read_tasks, settings.tasks, settings.data, settings.limit,
                min(folder.positions for folder in folders),
            )
            if settings.tasks
            else []
        )  # fmt: skip
        faults.add(*_method_faults(settings, text is not None))
        if "edges" in settings.methods and resolved is not None:
            faults.add(*_span_faults(resolved, tasks or []))
        before = faults.attempt(_find_before, source, folders, settings, text, tasks or ())
    assert resolved is not None and tasks is not None
    return Request(folders, resolved, source, text, tuple(tasks), before, settings)


def guided_heads(plan: GuidancePlan, config: Any) -> dict[tuple[int, int], Any]:
    """(layer, head) → guided head, of a model of this configuration."""
    shape = config.get_text_config()
    return dict(plan.resolve(shape.num_hidden_layers, shape.num_attention_heads))


def _alike(folders: Sequence[ModelFolder]) -> list[Fault]:
    """Faults of models that cannot be compared on the same tokens."""
    first, faults = folders[0], []
    for folder in folders[1:]:
        if tokenizer_fingerprint(folder.tokenizer) != tokenizer_fingerprint(first.tokenizer):
            remedy = "ablate it in a separate command"
            faults.append(Fault("--model", f"has another tokenizer than {first.name}", remedy, folder.name))
    return faults


def find_text(source: PlanSource, folders: Sequence[ModelFolder], settings: AblateSettings) -> Text | None:
    """The held-out blocks that the settings name, else those of the plan's run; None for tasks only."""
    run = source.run
    positions = min(folder.positions for folder in folders)
    length = settings.block_length or (run.data.block_length if run else min(_DEFAULT_LENGTH, positions))
    if length > positions:
        problem = f"the models have {positions} positions"
        raise UserError.of("--block-length", problem, f"give at most {positions}", length)
    if settings.text is not None:
        folder = embedded_corpus() if settings.text == EMBEDDED_SHARDS else settings.text
        with reworded(lambda fault: replace(fault, field="--text")):
            store = BlockStore(folder, "validation", length)
        manifest = store.manifest
        return _text(
            store, manifest.tokenizer_fingerprint, manifest.fingerprint, str(settings.text), False,
            folders, settings,
        )  # fmt: skip
    if settings.tasks:
        return None
    if run is None:
        remedy = "give --text SHARDS, --tasks, or a run's config.yaml as --plan, whose held-out text is used"
        raise UserError.of("--text, --tasks", "must give at least one of them", remedy)
    corpus = find_corpus(
        run.model_copy(update={"data": run.data.model_copy(update={"block_length": length})})
    )
    return _text(
        corpus.held_out, corpus.tokenizer_fingerprint, corpus.fingerprint, f"held-out text of {source.name}",
        run.data.isolate_documents, folders, settings,
    )  # fmt: skip


def _text(
    blocks: Blocks, tokenizer: str, fingerprint: str, source: str, isolate: bool,
    folders: Sequence[ModelFolder], settings: AblateSettings,
) -> Text:  # fmt: skip
    if tokenizer != tokenizer_fingerprint(folders[0].tokenizer):
        problem = "was built with another tokenizer than the models'"
        raise UserError.of("--text", problem, "give shards of the models' tokenizer", source)
    count = min(settings.blocks, len(blocks))
    if count < 2:
        problem = (
            f"has {len(blocks)} held-out blocks of {blocks.block_length} tokens, or fewer were asked for"
        )
        remedy = "give at least two blocks: an interval needs them; lower --block-length for a short text"
        raise UserError.of("--text", problem, remedy, source)
    chosen = np.arange(count) * len(blocks) // count
    return Text(blocks, chosen, isolate, tokenizer, fingerprint, source)


def _method_faults(settings: AblateSettings, has_text: bool) -> Iterator[Fault]:
    if "resample" in settings.methods and settings.batch < 2:
        remedy = "give at least 2, or leave resample out"
        problem = "resample takes the output of another block of the same pass"
        yield Fault("--batch", problem, remedy, settings.batch)
    if "mean" in settings.methods and not has_text:
        remedy = "give --text, or --methods zero"
        yield Fault("--methods", "mean takes the heads' mean over --text", remedy, "mean")
    if not has_text and not set(settings.methods) & set(TASK_METHODS):
        remedy = f"add one of {', '.join(TASK_METHODS)}"
        yield Fault("--methods", "resample is for --text, not for tasks", remedy, "resample")


def _span_faults(plan: GuidancePlan, tasks: Sequence[TaskData]) -> list[Fault]:
    """Tasks whose data do not give the marks on which a pattern of the plan depends."""
    remedy = "name their column in the task file (spans: {MARK: column}), or leave the method edges out"
    return [
        Fault(f"--tasks: {task.task.name}", "gives no spans for the plan's pattern", remedy, mark)
        for task in tasks
        for mark in plan.marks
        if mark not in task.task.spans
    ]


def _find_before(
    source: PlanSource, folders: Sequence[ModelFolder], settings: AblateSettings, text: Text | None,
    tasks: Sequence[TaskData],
) -> ModelFolder | str | None:  # fmt: skip
    given = settings.before
    is_read = text is not None or any(task.task.spans for task in tasks)
    if given is None:
        if not is_read:
            return None
        return folders[0].name if len(folders) > 1 else _start(source) if source.run else None
    if not is_read:
        problem = "attention is compared on --text or on spans of --tasks, but neither is given"
        remedy = "give --text as well"
        raise UserError.of("--before", problem, remedy, given)
    if given == START:
        if _start(source) is None:
            problem = "the plan is not that of a run whose first weights can be built again"
            raise UserError.of("--before", problem, "give the model's folder", given)
        return START
    name = model_path(given)
    if name in (folder.name for folder in folders):
        return name
    with reworded(lambda fault: replace(fault, field="--before")):
        folder = find_model_folder(name)
    shapes = [one.config.get_text_config() for one in (folder, folders[0])]
    sizes = [(shape.num_hidden_layers, shape.num_attention_heads) for shape in shapes]
    if sizes[0] != sizes[1] or _alike((folders[0], folder)):
        problem = f"has other layers, heads or tokens than {folders[0].name}"
        raise UserError.of("--before", problem, "give the model that it was trained from", given)
    return folder


def _start(source: PlanSource) -> str | None:
    """`start` where the first weights of the plan's run can be built again: not those of a checkpoint."""
    return START if source.run is not None and not source.run.init_from else None
