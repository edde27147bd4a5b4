"""From a study to its cells: what each trains, starts from and is evaluated on, and its stable id. Pure but
for reading the DeepSpeed JSON files and the fingerprint of the data.

A cell's id is made of what decides its numbers. So a study whose file gains a seed, a size or a column keeps
the cells it has, and a changed learning rate makes new ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from gaguide.config import RunConfig
from gaguide.config.experiments import EXPERIMENTS
from gaguide.data.format.manifest import is_complete, read_manifest
from gaguide.engine.config import load_deepspeed_json
from gaguide.errors import Fault, UserError, suggestion
from gaguide.shipped import DEEPSPEED_JSONS
from gaguide.study.file import FINETUNED, ORIGINAL, ExperimentSection, SizeSection, StudyConfig

REPOSITORY = Path(__file__).resolve().parents[2]
Role = Literal["base", "original", "tuned"]
_BASE = "base"
# Settings that change no number of a finished cell.
_IMMATERIAL: Any = {
    "name": True,
    "output": True,
    "checkpoint": True,
    "train": {"log_every"},
    "data": {"cache_gb"},
}


@dataclass(frozen=True)
class Cell:
    """One cell. `run` is None for an original; `model` is what is evaluated, None for a base.

    folder: relative to the study's. base: id of the cell whose model it starts from or evaluates.
    """

    id: str
    role: Role
    size: str
    experiment: str
    seed: int | None
    run: RunConfig | None
    model: str | None
    ds_config: Path
    ranks: int
    base: str | None = None

    @property
    def folder(self) -> str:
        """Where the cell writes, below the study's folder."""
        return f"cells/{self.id}"


@dataclass(frozen=True)
class Grid:
    """A study's cells, bases before what starts from them; `evaluation` identifies tasks and settings."""

    study: StudyConfig
    folder: Path
    cells: tuple[Cell, ...]
    evaluation: str

    def path(self, cell: Cell) -> Path:
        """The cell's folder."""
        return self.folder / cell.folder

    def cell(self, cell_id: str) -> Cell:
        """The cell of that id; a `UserError` where there is none."""
        for cell in self.cells:
            if cell.id == cell_id:
                return cell
        known = suggestion(cell_id, [cell.id for cell in self.cells])
        raise UserError(Fault("--cell", "is no cell of this study", known, cell_id))

    def baselines(self, experiment: str) -> tuple[str, ...]:
        """Columns of the study that `experiment` is compared with."""
        columns = {column.name: column for column in self.study.experiments}
        wanted = columns[experiment].against
        names = self.study.baselines if wanted is None else wanted
        return tuple(name for name in names if name in columns and name != experiment)


def make_grid(study: StudyConfig, ranks: int | None = None) -> Grid:
    """Every cell of the study. Raises one `UserError` with the faults of all of them."""
    folder = Path(study.output).expanduser().resolve()
    builder = _Builder(study, folder, ranks)
    for size in study.sizes:
        builder.add_size(size)
    if builder.faults:
        raise UserError(builder.faults)
    return Grid(study, folder, tuple(builder.cells), _evaluation_id(study))


class _Builder:
    """Collects cells and faults."""

    def __init__(self, study: StudyConfig, folder: Path, ranks: int | None) -> None:
        self.study, self.folder, self.ranks = study, folder, ranks
        self.cells: list[Cell] = []
        self.faults: list[Fault] = []
        self.data = _data_identity(study)
        self.jsons: dict[Path, Any] = {}
        self.told: set[tuple[Any, str]] = set()

    def add_size(self, size: SizeSection) -> None:
        bases: dict[int, Cell | None] = {}
        if self.study.pretrain is not None:
            bases = {seed: self._base(size, seed) for seed in self.study.seeds}
        for experiment in self.study.experiments:
            if experiment.name == ORIGINAL and not bases:
                self._add_original(size, None, None)
                continue
            for seed in self.study.seeds:
                if experiment.name == ORIGINAL:
                    self._add_original(size, seed, bases[seed])
                else:
                    self._add_tuned(size, experiment, seed, bases.get(seed))

    def _base(self, size: SizeSection, seed: int) -> Cell | None:
        pretrain = self.study.pretrain
        assert pretrain is not None
        model = {"name": size.model or size.name, "init": "scratch"}
        train = {**self.study.train, **size.train, **pretrain.train}
        return self._add(size, _BASE, seed, model, {}, train, pretrain.tokens, None, "base")

    def _add_original(self, size: SizeSection, seed: int | None, base: Cell | None) -> None:
        model = size.model or size.name if base is None else str(self.folder / base.folder / "model")
        parts = ["original", base.id if base else model]
        name = f"{size.name}-{ORIGINAL}" + ("" if seed is None else f"-s{seed}")
        self.cells.append(
            Cell(
                f"{name}-{_digest(parts)}", "original", size.name, ORIGINAL, seed, None, model,
                self._ds_path(size), self._ranks(size), base.id if base else None,
            )
        )  # fmt: skip

    def _add_tuned(
        self, size: SizeSection, experiment: ExperimentSection, seed: int, base: Cell | None
    ) -> None:
        scratch = experiment.start == "scratch"
        if scratch or base is None:
            model = {"name": size.model or size.name, "init": "scratch" if scratch else "pretrained"}
            base = None
        else:
            model = {"name": str(self.folder / base.folder / "model"), "init": "pretrained"}
        train = {**self.study.train, **size.train, **experiment.train}
        tokens = experiment.tokens or size.tokens or self.study.tokens
        guidance = self._guidance(experiment)
        self._add(size, experiment.name, seed, model, guidance, train, tokens, base, "tuned")

    def _guidance(self, experiment: ExperimentSection) -> dict[str, Any]:
        if experiment.guidance is not None:
            return {**self.study.guidance, **experiment.guidance}
        if experiment.name not in EXPERIMENTS:
            known = [ORIGINAL, *EXPERIMENTS]
            remedy = f"{suggestion(experiment.name, known)} Or give it a guidance section"
            self.faults.append(Fault("experiments", "is no experiment of the study", remedy, experiment.name))
        if experiment.name != FINETUNED:
            return {**self.study.guidance, "experiment": experiment.name}
        if self.study.measure is None:
            return {"experiment": FINETUNED}
        return {**self.study.guidance, "experiment": self.study.measure, "weight": 0}

    def _add(
        self, size: SizeSection, experiment: str, seed: int, model: dict[str, Any],
        guidance: dict[str, Any], train: dict[str, Any], tokens: int | None, base: Cell | None, role: Role,
    ) -> Cell | None:  # fmt: skip
        tree: dict[str, Any] = {
            "name": f"{size.name} {experiment} seed {seed}",
            "output": str(self.folder),  # a cell has its own once its id is known
            "seed": seed,
            "model": {**model, "dropout": self.study.dropout},
            "data": self.study.data.model_dump(mode="json"),
            "guidance": guidance,
            "train": self._with_length(train, tokens),
            "validation": self.study.validation.model_dump(),
        }
        ds_path = self._ds_path(size)
        ds_content = self._ds_content(ds_path)
        try:
            run = RunConfig.model_validate(tree)
        except ValidationError as error:
            self._add_faults(error, f"{size.name}, {experiment}")
            return None
        parts = [_material(run, base), ds_content, self.data]
        cell_id = f"{size.name}-{experiment}-s{seed}-{_digest(parts)}"
        output = self.folder / "cells" / cell_id
        run = run.model_copy(update={"output": str(output)})
        cell = Cell(
            cell_id, role, size.name, experiment, seed, run,
            None if role == "base" else str(output / "model"), ds_path, self._ranks(size),
            base.id if base else None,
        )  # fmt: skip
        self.cells.append(cell)
        return cell

    def _add_faults(self, error: ValidationError, where: str) -> None:
        """What is wrong in many cells alike is told of the first."""
        for found in error.errors():
            key = (found["loc"], found["msg"])
            if key not in self.told:
                self.told.add(key)
                self.faults.append(_fault(found, where))

    def _with_length(self, train: dict[str, Any], tokens: int | None) -> dict[str, Any]:
        """The optimizer steps that a token budget pays for: rounded to the nearest, at least one."""
        batch = train.get("global_batch")
        if tokens is None or not isinstance(batch, int) or batch < 1:
            return train
        return {**train, "steps": max(1, round(tokens / (batch * self.study.data.block_length)))}

    def _ranks(self, size: SizeSection) -> int:
        return self.ranks or size.ranks or self.study.ranks

    def _ds_path(self, size: SizeSection) -> Path:
        """The DeepSpeed JSON of a size; as given where reading it will report that it is missing."""
        given = size.ds_config or self.study.ds_config
        with suppress(UserError):
            return DEEPSPEED_JSONS.find(given, "ds_config").resolve()
        return Path(given)

    def _ds_content(self, path: Path) -> Any:
        if path not in self.jsons:
            try:
                self.jsons[path] = load_deepspeed_json(path)
            except UserError as error:
                self.faults += error.faults
                self.jsons[path] = None
        return self.jsons[path]


def _material(run: RunConfig, base: Cell | None) -> dict[str, Any]:
    """What decides the numbers of a run; the folder of its base is replaced by the base's id.

    Without what stands at its default: a setting that a later gaguide adds leaves finished cells their ids.
    """
    tree = run.model_dump(mode="json", exclude=_IMMATERIAL, exclude_defaults=True)
    tree["guidance_weight"] = run.guidance.weight
    if base is not None:
        tree["model"]["name"] = base.id
    return tree


def _data_identity(study: StudyConfig) -> list[str]:
    """Fingerprints of shards on this machine; another corpus under the same name makes other cells."""
    names = [study.data.shards, *(entry.shards for entry in study.data.mixture)]
    local = [Path(name).expanduser() for name in names if name and "://" not in name]
    return [read_manifest(path).fingerprint for path in local if path.is_dir() and is_complete(path)]


def _evaluation_id(study: StudyConfig) -> str:
    return _digest([list(study.tasks), study.task_data, study.evaluate.model_dump()])


def _digest(parts: Iterable[Any] | Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _fault(found: Any, where: str) -> Fault:
    """A fault of a cell's run, under the name of the study's field."""
    path = ".".join(str(part) for part in found["loc"] if part != "function-plain")
    message = found["msg"].removeprefix("Value error, ")
    value = None if isinstance(found["input"], dict) else found["input"]
    return Fault(path or "run", f"{message[:1].lower()}{message[1:]} ({where})", "mend the study file", value)
