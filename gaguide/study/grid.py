"""From a study to its cells: each one's training, starting model and stable id.

Pure, apart from reading the content of the files that the study names on this machine.

A cell's id is a hash of everything that decides its training: settings, and the content of data, local
models, lexicon files and DeepSpeed JSON. So a study whose file gains a seed, a size or an experiment keeps
the cells it has, and a changed learning rate, or another model under the same path, makes new ones. The
tasks of a cell are not part of its id but of its done-record (`gaguide.study.state`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from gaguide.config import RunConfig
from gaguide.config.experiments import EXPERIMENTS
from gaguide.config.validation import validation_faults
from gaguide.engine.config import load_deepspeed_json
from gaguide.errors import Fault, FaultCollector, UserError, suggestion
from gaguide.files import local_folder
from gaguide.shipped import DEEPSPEED_JSONS
from gaguide.study.chosen import Chosen, read_chosen
from gaguide.study.content import ContentHashes, StudyTasks, read_task_contents
from gaguide.study.file import FINETUNED, ORIGINAL, ExperimentSection, SizeSection, StudyConfig
from gaguide.study.identity import ablation_id, data_identity, evaluation_id, material_settings, short_hash
from gaguide.trackers import SECTIONS as TRACKERS

Role = Literal["base", "original", "tuned"]
_BASE = "base"


@dataclass(frozen=True)
class Cell:
    """One model of a study: its training and evaluation."""

    id: str
    """Unique in the study: size, experiment, seed, and a hash of everything that decides its numbers."""
    role: Role
    """base: trained, not evaluated; original: evaluated, not trained; tuned: both."""
    size: str
    """Name of its size in the study."""
    experiment: str
    """Name of its experiment; `base` for a base."""
    seed: int | None
    """Seed; None for a pretrained original, which no seed changes."""
    run: RunConfig | None
    """The training; None for an original."""
    model: str | None
    """Hub id or folder of the model that is evaluated; None for a base."""
    ds_config: Path
    """DeepSpeed JSON."""
    ranks: int
    """Number of ranks for training and evaluation."""
    base: str | None = None
    """Id of the cell whose model it starts from, or evaluates."""

    @property
    def names_heads(self) -> bool:
        """Whether its run guides, or only measures, some heads."""
        guidance = None if self.run is None else self.run.guidance
        return guidance is not None and bool(guidance.plan or EXPERIMENTS.get(guidance.experiment))

    @property
    def folder(self) -> str:
        """The cell's folder, relative to the study's."""
        return f"cells/{self.id}"


@dataclass(frozen=True)
class Grid:
    """A study's cells."""

    study: StudyConfig
    """The study."""
    folder: Path
    """The study's folder."""
    cells: tuple[Cell, ...]
    """Every cell; a base precedes the cells that start from it."""
    evaluation: str
    """Hash of the tasks' names and the settings of the evaluation."""
    tasks: StudyTasks = field(default_factory=lambda: StudyTasks({}))
    """The content of the tasks."""
    ablation: str | None = None
    """Hash of the settings of the ablation; None where the study leaves it out."""
    notes: tuple[str, ...] = ()
    """Notes on the settings for the reader of its numbers."""

    def path(self, cell: Cell) -> Path:
        """The cell's folder."""
        return self.folder / cell.folder

    def cell(self, cell_id: str) -> Cell:
        """The cell with that id. Raises `UserError` where there is none."""
        for cell in self.cells:
            if cell.id == cell_id:
                return cell
        known = suggestion(cell_id, [cell.id for cell in self.cells])
        raise UserError.of("--cell", "is not a cell of this study", known, cell_id)

    def baselines(self, experiment: str) -> tuple[str, ...]:
        """Experiments of the study that `experiment` is compared with."""
        experiments = {one.name: one for one in self.study.experiments}
        wanted = experiments[experiment].against
        names = self.study.baselines if wanted is None else wanted
        return tuple(name for name in names if name in experiments and name != experiment)

    def twin(self, experiment: str) -> str | None:
        """The experiment without guidance with whose heads those of `experiment` are compared; None without.

        The first of its baselines, or else `finetuned`, that starts from the same weights and guides nothing.
        """
        start = {one.name: one.start for one in self.study.experiments}
        runs = [(cell.experiment, cell.run) for cell in self.cells if cell.run is not None]
        unguided = {FINETUNED} | {name for name, run in runs if run.guidance.weight == 0}
        names = [name for name in (*self.baselines(experiment), FINETUNED) if name in unguided & start.keys()]
        return next((one for one in names if one != experiment and start[one] == start[experiment]), None)


def make_grid(study: StudyConfig, ranks: int | None = None) -> Grid:
    """Every cell of the study; `ranks` overrides the study's. Raises one `UserError` with all faults."""
    folder = local_folder(study.output, "output").resolve()
    builder = _GridBuilder(study, folder, ranks)
    for size in study.sizes:
        builder.add_size(size)
    builder.faults.raise_if_any()
    builder.hashes.save()
    data = None if study.task_data is None else Path(study.task_data).expanduser()
    tasks = read_task_contents(study.tasks, data)
    cells, notes = tuple(builder.cells), tuple(builder.notes)
    return Grid(study, folder, cells, evaluation_id(study), tasks, ablation_id(study), notes)


class _GridBuilder:
    """Collects the cells of a study and the faults in their settings."""

    def __init__(self, study: StudyConfig, folder: Path, ranks: int | None) -> None:
        self.study, self.folder, self.ranks = study, folder, ranks
        self.cells: list[Cell] = []
        self.faults = FaultCollector()
        self.hashes = ContentHashes(folder)
        self._data = data_identity(study, self.hashes)
        self.chosen: Chosen | None = None
        """Plans of the size; None where their file has faults."""
        self._chosen: dict[str | None, Chosen | None] = {}
        self.notes: dict[str, None] = {}
        self._ds_contents: dict[Path, Any] = {}
        self._reported: set[tuple[str, str]] = set()

    def add_size(self, size: SizeSection) -> None:
        """Add the bases, originals and tuned cells of one size."""
        path = self.study.chosen and self.study.chosen.replace("{size}", size.name)
        if path not in self._chosen:
            self._chosen[path] = self.faults.attempt(read_chosen, path)
        self.chosen = self._chosen[path]
        bases: dict[int, Cell | None] = {}
        if self.study.pretrain is not None:
            bases = {seed: self._add_base(size, seed) for seed in self.study.seeds}
        for experiment in self.study.experiments:
            if experiment.name == ORIGINAL and not bases:
                self._add_original(size, None, None)
                continue
            for seed in experiment.seeds or self.study.seeds:
                if experiment.name == ORIGINAL:
                    self._add_original(size, seed, bases[seed])
                else:
                    self._add_tuned(size, experiment, seed, bases.get(seed))

    def _add_base(self, size: SizeSection, seed: int) -> Cell | None:
        pretrain = self.study.pretrain
        assert pretrain is not None
        train = _whole({**self.study.train, **size.train}) | pretrain.train
        sections = {
            "model": {"name": size.model or size.name, "init": "scratch"},
            "guidance": {},
            "train": self._with_length(train, pretrain.tokens),
        }
        return self._add_trained("base", size, _BASE, seed, None, sections)

    def _add_original(self, size: SizeSection, seed: int | None, base: Cell | None) -> None:
        model = size.model or size.name if base is None else str(self.folder / base.folder / "model")
        name = f"{size.name}-{ORIGINAL}" + ("" if seed is None else f"-s{seed}")
        digest = short_hash(["original", base.id if base else model, *self._local_model(model, base)])
        self.cells.append(
            Cell(
                id=f"{name}-{digest}",
                role="original",
                size=size.name,
                experiment=ORIGINAL,
                seed=seed,
                run=None,
                model=model,
                ds_config=self._ds_path(size),
                ranks=self._ranks(size),
                base=base.id if base else None,
            )
        )

    def _add_tuned(
        self, size: SizeSection, experiment: ExperimentSection, seed: int, base: Cell | None
    ) -> None:
        scratch = experiment.start == "scratch"
        if scratch or base is None:
            model = {"name": size.model or size.name, "init": "scratch" if scratch else "pretrained"}
            base = None
        else:
            model = {"name": str(self.folder / base.folder / "model"), "init": "pretrained"}
        if self.chosen and experiment.name in self.chosen.plans and experiment.guidance is None:
            self._note_origin(self.chosen, f"{experiment.name}, {size.name}", model)
        train = {**self.study.train, **size.train, **experiment.train}
        sections = {
            "model": model,
            "guidance": self._guidance(experiment),
            "train": self._with_length(train, experiment.tokens or size.tokens or self.study.tokens),
        }
        self._add_trained("tuned", size, experiment.name, seed, base, sections)

    def _note_origin(self, chosen: Chosen, where: str, model: Mapping[str, str]) -> None:
        """Note where heads were chosen in a model of other weights, or on the text of their removal."""
        if other := chosen.other_model(model, self.hashes):
            self.notes[f"{where}: {other}"] = None
        if chosen.is_of_text(self._data) and self.study.ablation is not None:
            where = "the heads of `chosen` were chosen on held-out text of these shards"
            what = "their removal is measured there too, which overestimates the most used"
            self.notes[f"{where}; {what}"] = None

    def _guidance(self, experiment: ExperimentSection) -> dict[str, Any]:
        """A run's `guidance` section for an experiment."""
        if experiment.guidance is not None:
            return {**self.study.guidance, **experiment.guidance}
        if self.chosen is not None and experiment.name in self.chosen.plans:
            return {**self.study.guidance, **self.chosen.plans[experiment.name]}
        if self.chosen is not None and experiment.name not in EXPERIMENTS:  # None: it may be in the file
            known = [ORIGINAL, *EXPERIMENTS, *self.chosen.plans]
            remedy = suggestion(experiment.name, known, otherwise="give it a guidance section")
            self._report(Fault("experiments", "is not a built-in experiment", remedy, experiment.name))
        if experiment.name != FINETUNED:
            return {**self.study.guidance, "experiment": experiment.name}
        if self.study.measure is None:
            return {"experiment": FINETUNED}
        return {**self.study.guidance, "experiment": self.study.measure, "weight": 0}

    def _add_trained(
        self, role: Role, size: SizeSection, experiment: str, seed: int, base: Cell | None,
        sections: Mapping[str, Mapping[str, Any]],
    ) -> Cell | None:  # fmt: skip
        """Add the cell; None where its settings have faults, which are collected.

        base: the cell whose model it starts from. sections: a run's `model`, without dropout, `guidance` and
        `train`.
        """
        tree: dict[str, Any] = {
            **sections,
            "name": f"{size.name} {experiment} seed {seed}",
            "output": str(self.folder),  # replaced by the cell's folder once its id is known
            "seed": seed,
            "model": {**sections["model"], "dropout": self.study.dropout},
            "data": self.study.data.model_dump(mode="json"),
            "validation": self.study.validation.model_dump(),
        }
        ds_path = self._ds_path(size)
        ds_content = self._ds_content(ds_path)
        try:
            run = RunConfig.model_validate(tree)
        except ValidationError as error:
            for fault in validation_faults(error, RunConfig, tree):
                self._report(fault, f" ({size.name}, {experiment})")
            return None
        contents = [*self._local_model(run.model.name, base), *self._lexicons(run)]
        digest = short_hash(
            [material_settings(run, base.id if base else None), ds_content, self._data, *contents]
        )
        cell_id = f"{size.name}-{experiment}-s{seed}-{digest}"
        output = self.folder / "cells" / cell_id
        cell = Cell(
            id=cell_id,
            role=role,
            size=size.name,
            experiment=experiment,
            seed=seed,
            run=run.model_copy(update={"output": str(output)}),
            model=None if role == "base" else str(output / "model"),
            ds_config=ds_path,
            ranks=self._ranks(size),
            base=base.id if base else None,
        )
        self.cells.append(cell)
        return cell

    def _report(self, fault: Fault, where: str = "") -> None:
        """Collect a fault; one that many cells share is reported for the first only."""
        key = (fault.field, fault.problem)
        if key not in self._reported:
            self._reported.add(key)
            self.faults.add(replace(fault, problem=fault.problem + where))

    def _with_length(self, train: Mapping[str, Any], tokens: int | None) -> Mapping[str, Any]:
        """`train` with the optimizer steps of a token budget: rounded to the nearest, at least one."""
        batch = train.get("global_batch")
        if tokens is None or not isinstance(batch, int) or batch < 1:
            return train
        return {**train, "steps": max(1, round(tokens / (batch * self.study.data.block_length)))}

    def _local_model(self, name: str, base: Cell | None) -> list[str]:
        """Hash of the model in a local folder; empty for hub ids, sizes and models that the study trains."""
        folder = Path(name).expanduser()
        return [self.hashes.model(folder)] if base is None and folder.is_dir() else []

    def _lexicons(self, run: RunConfig) -> list[str]:
        """Hash of a run's lexicon file; empty without one."""
        path = None if run.guidance.lexicons is None else Path(run.guidance.lexicons).expanduser()
        return [self.hashes.file(path)] if path is not None and path.is_file() else []

    def _ranks(self, size: SizeSection) -> int:
        return self.ranks or size.ranks or self.study.ranks

    def _ds_path(self, size: SizeSection) -> Path:
        """The DeepSpeed JSON of a size; as given where reading it will report that it is missing."""
        given = size.ds_config or self.study.ds_config
        with suppress(UserError):
            return DEEPSPEED_JSONS.find(given, "ds_config").resolve()
        return Path(given)

    def _ds_content(self, path: Path) -> Any:
        """The DeepSpeed JSON as far as it decides a training: without the settings of monitors."""
        if path not in self._ds_contents:
            content = self.faults.attempt(load_deepspeed_json, path) or {}
            self._ds_contents[path] = {key: of for key, of in content.items() if key not in TRACKERS}
        return self._ds_contents[path]


def _whole(train: dict[str, Any]) -> dict[str, Any]:
    """`train` for a base, which is trained whole whatever its fine-tuning adapts or freezes."""
    return {name: value for name, value in train.items() if name not in ("lora", "freeze", "trainable")}
