"""The settings of a study, read from a YAML file; all faults are reported at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from gaguide.config.data import DataSection
from gaguide.config.fields import Fraction, NonNegativeInt, OnOverflow
from gaguide.config.run import ValidationSection
from gaguide.config.validation import takes_text, validation_faults
from gaguide.config.yaml_tree import apply_overrides, merge, read_yaml
from gaguide.errors import Fault, FaultCollector, UserError, suggestion

ORIGINAL, FINETUNED = "original", "finetuned"
_SHIPPED = Path(__file__).parent / "studies"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=_NAME)]


def _split(value: Any) -> Any:
    """`a,b` on the command line as a list."""
    if isinstance(value, (str, int)):
        return tuple(part.strip() for part in str(value).split(",") if part.strip())
    return value


def _from_name(value: Any) -> Any:
    """A plain name in a list of sizes or experiments as a section."""
    return {"name": value} if isinstance(value, str) else value


def _from_model(value: Any) -> Any:
    """A size given as a plain name, a hub id or a folder, whose last part is then its name in tables."""
    if not isinstance(value, str):
        return value
    if re.fullmatch(_NAME, value):
        return {"name": value}
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", value.rstrip("/").split("/")[-1]).lstrip("._-")
    return {"name": last or value, "model": value}


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )


class SizeSection(_Section):
    name: Name
    """Name in tables."""
    model: str | None = None
    """A run's `model.name`: hub id, folder or size; null uses the name. A size given as a path or hub id sets
    this, and its last part is the name."""
    tokens: PositiveInt | None = None
    """Training tokens of a cell of this size; null uses the study's."""
    ds_config: str | None = None
    """DeepSpeed JSON for this size; null uses the study's."""
    ranks: PositiveInt | None = None
    """Ranks of a cell of this size; null uses the study's."""
    train: dict[str, Any] = {}
    """Fields of a run's `train` that differ for this size."""


class ExperimentSection(_Section):
    name: Name
    """Name in tables; `original` is the model before fine-tuning, which is not trained."""
    guidance: dict[str, Any] | None = None
    """A run's `guidance` section; null uses the built-in experiment of that name."""
    start: Literal["base", "scratch"] = "base"
    """Fine-tune the base model, or train its architecture from random weights."""
    tokens: PositiveInt | None = None
    """Training tokens of this experiment; null uses the size's or the study's."""
    train: dict[str, Any] = {}
    """Fields of a run's `train` that differ for this experiment."""
    seeds: Annotated[tuple[int, ...] | None, BeforeValidator(_split)] = None
    """Some of the study's seeds; null takes all. Experiments are compared over the seeds that both have."""
    against: tuple[str, ...] | None = None
    """Experiments that it is compared with; null uses the study's baselines."""


class PretrainSection(_Section):
    tokens: PositiveInt
    """Training tokens of each base model."""
    train: dict[str, Any] = {}
    """Fields of a run's `train` that differ for base models."""


class EvaluateSection(_Section):
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the evaluation."""
    batch_tokens: PositiveInt | None = None
    """Padded tokens of an evaluation batch; null chooses by device."""
    limit: PositiveInt | None = None
    """Number of examples of each task, from the first; null evaluates all."""
    shots: NonNegativeInt | None = None
    """Demonstrations before every prompt; null uses the tasks' own number."""
    on_overflow: OnOverflow = "cut"
    """Examples longer than the model: cut on the left, leave out whole demonstrations, or fail."""


class AblationSection(_Section):
    methods: Annotated[
        tuple[Literal["mean", "zero", "resample", "edges"], ...], BeforeValidator(_split), Field(min_length=1)
    ] = ("mean", "zero")
    """Ways of removing a head, as in `gaguide ablate`; verdicts rest on the first."""
    controls: NonNegativeInt = 3
    """Random other heads of the same layer that are removed as controls of each."""
    blocks: Annotated[int, Field(ge=2)] = 64
    """Held-out blocks on which losses with and without a head are compared."""
    seed: NonNegativeInt = 0
    """Seed of the choice of controls and of resampling."""


class AuthorSection(_Section):
    name: str
    """Given and family name."""
    orcid: Annotated[str, Field(pattern=r"^https://orcid\.org/(\d{4}-){3}\d{3}[\dX]$")] | None = None
    """ORCID, as https://orcid.org/…"""
    affiliation: str | None = None
    """Institution."""


Sizes = Annotated[SizeSection, BeforeValidator(_from_model)]
Experiments = Annotated[ExperimentSection, BeforeValidator(_from_name)]


class StudyConfig(_Section):
    """A study: sizes × experiments × seeds, trained on the same data and evaluated on the same tasks."""

    name: Name
    """Name in reports."""
    output: str
    """Folder for everything the study writes."""
    sizes: Annotated[tuple[Sizes, ...], BeforeValidator(_split), Field(min_length=1)]
    """Models, as names or with their settings."""
    experiments: Annotated[tuple[Experiments, ...], BeforeValidator(_split), Field(min_length=1)]
    """original, finetuned, 1-negation, 3-negation, 4-transition, or any name with a guidance section."""
    chosen: str | None = None
    """A plan.yaml of `gaguide heads profile`, whose plans (`chosen-most-used`, …) are experiments as well.
    `{size}` stands for the name of each size: profiles/{size}/plan.yaml."""
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], BeforeValidator(_split), Field(min_length=1)
    ] = (0,)
    """Seeds; each changes data order, dropout and random weights."""
    data: DataSection
    """A run's `data` section."""
    pretrain: PretrainSection | None = None
    """Train a base model from random weights for each size and seed first; null uses pretrained models."""
    data_tokens: PositiveInt | None = None
    """Approximate number of training tokens in the data, for --dry-run before the data are built."""
    tokens: PositiveInt | None = None
    """Training tokens of a cell; null leaves the length to `train.epochs` or `train.steps`."""
    train: dict[str, Any] = {}
    """A run's `train` section, without the length where `tokens` is given."""
    dropout: Fraction | None = None
    """Dropout everywhere in the models; null keeps their own."""
    guidance: dict[str, Any] = {}
    """Fields of a run's `guidance` that all guided experiments share, such as weight, mode and layers."""
    measure: str | None = None
    """Experiment whose words are measured, at weight 0, in `finetuned` cells; null measures none."""
    validation: ValidationSection = ValidationSection()
    """A run's `validation` section."""
    tasks: Annotated[tuple[str, ...], BeforeValidator(_split), Field(min_length=1)]
    """Tasks of the evaluation, as its option `--tasks`."""
    task_data: str | None = None
    """Folder of the tasks' data, as the evaluation's option `--data`."""
    evaluate: EvaluateSection = EvaluateSection()
    """Settings of the evaluation."""
    ablation: AblationSection | None = AblationSection()
    """Removal of the heads of each guided, or measured, cell: are they used? null leaves it out."""
    ds_config: str = "ds_configs/zero2.json"
    """DeepSpeed JSON of sizes that do not name one."""
    ranks: PositiveInt = 1
    """Ranks of a cell; its size and --ranks take precedence."""
    baselines: tuple[str, ...] = (ORIGINAL, FINETUNED)
    """Experiments that the others are compared with."""
    budgets: dict[Name, dict[str, Any]] = {}
    """Fields of the study that differ under `--budget NAME`, such as tokens, seeds and `train`; sections are
    merged with the file's."""
    budget: str | None = None
    """The budget in force; null takes the file unchanged."""
    authors: tuple[Annotated[AuthorSection, BeforeValidator(_from_name)], ...] = ()
    """Who made the study, for ro-crate-metadata.json."""
    license: str | None = None
    """Licence of the study's records, as an address or in words, for ro-crate-metadata.json."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of finished cells; exported models are always kept."""

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        problems = _duplicates("size", [size.name for size in self.sizes])
        problems += _duplicates("experiment", [experiment.name for experiment in self.experiments])
        problems += _duplicates("seed", [str(seed) for seed in self.seeds])
        for experiment in self.experiments:
            if experiment.name == ORIGINAL and (experiment.guidance or experiment.start == "scratch"):
                problems.append("experiment original is the model before fine-tuning and takes no settings")
            foreign = sorted(set(experiment.seeds or ()) - set(self.seeds))
            problems += [
                f"{experiment.name} has seed {seed}, which is not one of the study's seeds"
                for seed in foreign
            ]
            if experiment.seeds == ():
                problems.append(f"{experiment.name} has no seed")
            unknown = set(experiment.against or ()) - {other.name for other in self.experiments}
            problems += [
                f"{experiment.name} is compared with {name!r}, which is not an experiment"
                for name in sorted(unknown)
            ]
        nested = sorted({"budget", "budgets"} & {key for fields in self.budgets.values() for key in fields})
        problems += [f"a budget cannot set {key}" for key in nested]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def load_study(path: Path | str, overrides: Mapping[str, str]) -> StudyConfig:
    """The study in a YAML file, or the shipped one of that name, with dotted overrides read as YAML.

    A budget (the file's, or that of the override `budget`) is put over the file, and overrides over both.
    Raises one `UserError` with every fault.
    """
    tree = read_yaml(_find(path), "FILE")
    with FaultCollector() as faults:
        tree = _with_budget(tree, overrides.get("budget", tree.get("budget")), faults)
        faults.add(*apply_overrides(tree, overrides, partial(takes_text, StudyConfig)))
        try:
            return StudyConfig.model_validate(tree)
        except ValidationError as error:
            raise UserError(validation_faults(error, StudyConfig, tree, "study")) from None


def _with_budget(tree: dict[str, Any], budget: object, faults: FaultCollector) -> dict[str, Any]:
    """The study with the fields of a budget put over its own."""
    if budget in (None, "null"):
        return tree
    budgets = tree.get("budgets")
    known = budgets if isinstance(budgets, dict) else {}
    fields = known.get(budget)
    if not isinstance(fields, dict):
        remedy = suggestion(str(budget), map(str, known)) if known else "the study has none: leave it out"
        faults.add(Fault("budget", "the study has no such budget", remedy, budget))
        return tree
    return merge(tree, fields)


def shipped_studies() -> list[str]:
    """Names of the studies that come with gaguide, sorted."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def _find(given: Path | str) -> Path:
    path, shipped = Path(given), _SHIPPED / f"{str(given).removesuffix('.yaml')}.yaml"
    if path.exists() and not path.is_dir():
        return path
    if len(path.parts) == 1 and shipped.is_file():
        return shipped
    if path.is_dir():
        remedy = "give its YAML file; only status and collect take the folder that a study was run into"
        raise UserError.of("FILE", "is a folder, not a study's file", remedy, str(given))
    remedy = f"give a YAML file, or a shipped study: {', '.join(shipped_studies())}"
    raise UserError.of("FILE", "does not exist", remedy, str(given))


def _duplicates(what: str, names: list[str]) -> list[str]:
    return [f"{what} {name} is given twice" for name, count in sorted(Counter(names).items()) if count > 1]
